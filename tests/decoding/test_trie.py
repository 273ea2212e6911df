from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recllm.decoding.trie import ROOT, SidTrie
from recllm.sid.table import SidTable

# Few token ids and several lengths: the same id at many positions, and sids that begin other sids.
sequence_sets = st.sets(st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple), min_size=1, max_size=40)


def continuations(sequences: Sequence[Sequence[int]]) -> dict[tuple[int, ...], set[int]]:
    """Brute force: every prefix of every sequence, with the tokens that follow it."""
    known: dict[tuple[int, ...], set[int]] = {}
    for sequence in sequences:
        for length in range(len(sequence)):
            known.setdefault(tuple(sequence[:length]), set()).add(sequence[length])
        known.setdefault(tuple(sequence), set())
    return known


@settings(max_examples=150, deadline=None)
@given(sequence_sets)
def test_the_trie_is_the_set_of_prefixes(sequences: set[tuple[int, ...]]) -> None:
    sequences = sorted(sequences, key=hash)
    trie = SidTrie.from_sequences([np.array(sequence) for sequence in sequences])
    known = continuations(sequences)
    assert trie.nodes == len(known)
    nodes = {prefix: trie.walk(prefix) for prefix in known}
    assert sorted(nodes.values()) == list(range(len(known))), "one node a prefix"
    for prefix, following in known.items():
        node = nodes[prefix]
        assert trie.children(node).tolist() == sorted(following)
        assert trie.item(node) == (sequences.index(prefix) if prefix in sequences else None)
        for token in range(-1, 6):
            if token in following:
                assert trie.step(node, token) == nodes[(*prefix, token)]
            else:
                with pytest.raises(KeyError, match="does not continue"):
                    trie.step(node, token)
    assert trie.depth == max(map(len, sequences))


@settings(max_examples=60, deadline=None)
@given(sequence_sets, st.integers(0, 10**6))
def test_batched_answers_are_the_single_ones(sequences: set[tuple[int, ...]], seed: int) -> None:
    trie = SidTrie.from_sequences([np.array(sequence) for sequence in sorted(sequences)])
    rng = np.random.default_rng(seed)
    nodes_B = torch.from_numpy(rng.integers(trie.nodes, size=20))
    children = trie.children_batched(nodes_B)
    for row, node in enumerate(nodes_B.tolist()):
        part = slice(children.offsets_B1[row], children.offsets_B1[row + 1])
        assert torch.equal(children.tokens_F[part], trie.children(node))
        assert children.nodes_F[part].tolist() == [trie.step(node, token) for token in trie.children(node).tolist()]
    mask_BV = trie.allowed_mask(nodes_B, 7)
    assert mask_BV.shape == (20, 7)
    assert [row.nonzero().flatten().tolist() for row in mask_BV] == [
        trie.children(n).tolist() for n in nodes_B.tolist()
    ]
    tokens_B = torch.from_numpy(rng.integers(-2, 9, size=20))
    for node, token, found in zip(
        nodes_B.tolist(), tokens_B.tolist(), trie.find(nodes_B, tokens_B).tolist(), strict=True
    ):
        if token in trie.children(node).tolist():
            assert found == trie.step(node, token)
        else:
            assert found == -1


@pytest.mark.parametrize("items", [3_000, 100_000])
def test_large_index_against_brute_force(items: int) -> None:
    rng = np.random.default_rng(items)
    # Token ids of the levels overlap on purpose: 0..255 on each.
    sequences = np.unique(rng.integers(256, size=(items, 3)), axis=0)
    rng.shuffle(sequences)
    trie = SidTrie.from_sequences(sequences)
    prefixes = {()} | {tuple(row[:n]) for row in sequences.tolist() for n in (1, 2, 3)}
    assert trie.nodes == len(prefixes)
    leaves_N = torch.full((len(sequences),), ROOT)
    for column_N in torch.from_numpy(sequences).T:
        leaves_N = trie.step_batched(leaves_N, column_N)
    assert torch.equal(trie.items_V[leaves_N], torch.arange(len(sequences)))
    probes = rng.integers(256, size=(2000, 3))
    nodes_B = torch.full((2000,), ROOT)
    alive_B = torch.ones(2000, dtype=torch.bool)
    for level, column_B in enumerate(torch.from_numpy(probes).T):
        found_B = trie.find(nodes_B, column_B)
        alive_B &= found_B >= 0
        assert alive_B.tolist() == [tuple(probe[: level + 1]) in prefixes for probe in probes.tolist()]
        nodes_B = found_B.clamp_min(0)


def test_prefixes_are_exact_where_a_table_of_positions_is_not() -> None:
    # The pairs (1 at place 0, 5 at place 1) and (5 at place 1, 8 at place 2) occur, the sid 1 5 8 does not.
    trie = SidTrie.from_sequences([np.array([1, 5, 7]), np.array([2, 5, 8])])
    assert trie.children(trie.walk([1, 5])).tolist() == [7]
    with pytest.raises(KeyError, match="token 8"):
        trie.walk([1, 5, 8])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple), min_size=1, max_size=40),
    st.integers(0, 10**6),
)
def test_items_behind_a_node_are_those_with_its_sid(sequences: list[tuple[int, ...]], seed: int) -> None:
    """Random collisions, some sids beginning others; behind one sid the items come by priority, then id."""
    priority_N = np.random.default_rng(seed).integers(3, size=len(sequences)).astype(float)
    arrays = [np.array(sequence) for sequence in sequences]
    trie = SidTrie.from_sequences(arrays, shared=True, priority_N=priority_N)
    known = sorted(continuations(sequences))
    nodes_B = torch.tensor([trie.walk(prefix) for prefix in known])
    behind = trie.items_behind(nodes_B)
    for row, prefix in enumerate(known):
        expected = [item for item, sequence in enumerate(sequences) if sequence == prefix]
        expected.sort(key=lambda item: (-priority_N[item], item))
        assert behind.items_F[behind.offsets_B1[row] : behind.offsets_B1[row + 1]].tolist() == expected
        assert trie.item(int(nodes_B[row])) == (expected[0] if expected else None)
    assert trie.is_even == (len({len(sequence) for sequence in sequences}) == 1)
    if len(set(sequences)) < len(sequences):
        with pytest.raises(ValueError, match="have the same token ids"):
            SidTrie.from_sequences(arrays)


@settings(max_examples=60, deadline=None)
@given(sequence_sets)
def test_levels_are_the_tokens_at_a_place(sequences: set[tuple[int, ...]]) -> None:
    trie = SidTrie.from_sequences([np.array(sequence) for sequence in sorted(sequences)])
    for level, (tokens, (first, last)) in enumerate(zip(trie.level_tokens, trie.level_edges, strict=True)):
        assert tokens.tolist() == sorted({sequence[level] for sequence in sequences if len(sequence) > level})
        assert torch.equal(tokens[trie.column_E[first:last]], trie.tokens_E[first:last])
    assert trie.level_edges[-1][1] == len(trie.tokens_E)


def test_table_and_token_ids_give_the_items() -> None:
    table = SidTable(np.array([[1, 0], [0, 2], [1, 1]]), (2, 4))
    trie = SidTrie.from_table(table, [np.array([100, 101]), np.array([110, 111, 112, 113])])
    assert [trie.item(trie.walk(tokens)) for tokens in ([101, 110], [100, 112], [101, 111])] == [0, 1, 2]
    assert trie.alphabet_A.tolist() == [100, 101, 110, 111, 112, 113], "unused codes belong to the alphabet too"
    assert trie.starts_are_distinct
    shared = SidTrie.from_table(table, [np.arange(2), np.arange(4)])
    assert not shared.starts_are_distinct
    assert shared.item(shared.walk([0, 2])) == 1
    with pytest.raises(ValueError, match="levels of"):
        SidTrie.from_table(table, [np.arange(2), np.arange(3)])


def test_unknown_states_raise() -> None:
    trie = SidTrie.from_sequences([np.array([1, 2]), np.array([1, 3])])
    leaf = trie.walk([1, 2])
    assert trie.children(leaf).tolist() == [] and trie.item(leaf) == 0 and trie.item(ROOT) is None
    for node in (-1, trie.nodes):
        for call in (trie.children, trie.item, lambda n: trie.step(n, 1)):
            with pytest.raises(KeyError, match=f"node {node} is not in the trie"):
                call(node)
        for call in (
            trie.children_batched,
            lambda nodes: trie.find(nodes, torch.tensor([1, 1])),
            lambda nodes: trie.allowed_mask(nodes, 10),
        ):
            with pytest.raises(KeyError, match=f"node {node} is not in the trie"):
                call(torch.tensor([0, node]))
    with pytest.raises(KeyError, match="row 1: token 9"):
        trie.step_batched(torch.tensor([ROOT, ROOT]), torch.tensor([1, 9]))
    with pytest.raises(ValueError, match="no room for sid token 3"):
        trie.allowed_mask(torch.tensor([ROOT]), 3)


def test_bad_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match="items 0 and 2 have the same token ids"):
        SidTrie.from_sequences([np.array([1, 2]), np.array([1]), np.array([1, 2])])
    with pytest.raises(ValueError, match="item 1 has an empty one"):
        SidTrie.from_sequences([np.array([1]), np.array([], dtype=int)])
    with pytest.raises(ValueError, match="none"):
        SidTrie.from_sequences([])
    with pytest.raises(ValueError, match="-3"):
        SidTrie.from_sequences([np.array([1, -3])])


def test_paths_and_what_lies_under_a_node_by_hand():
    """Sids of unlike lengths, one of them the beginning of another, two items behind one."""
    trie = SidTrie.from_sequences([[5, 7], [5], [6, 7, 8], [5, 7]], shared=True)
    five, six = trie.walk([5]), trie.walk([6])
    deep, other, last = trie.walk([5, 7]), trie.walk([6, 7]), trie.walk([6, 7, 8])
    assert trie.path_NL.tolist() == [[five, deep, -1], [five, -1, -1], [six, other, last], [five, deep, -1]]
    under = {five: 3, six: 1, deep: 2, other: 1, last: 1}
    assert {node: int(trie.items_under_V[node]) for node in under} == under
