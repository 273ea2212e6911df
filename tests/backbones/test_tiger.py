import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from recllm.backbones.generate import Writing, recommend, score_items, trie_of
from recllm.backbones.tiger import BOS, FIRST_CODE, TIGER
from recllm.data.histories import Prefixes
from recllm.sid.table import SidTable

worlds = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("generative_worlds.py"))))
ITEMS, SHAPE, SIZES, item_scores = worlds.ITEMS, worlds.SHAPE, worlds.SIZES, worlds.item_scores
make_table, make_tiger, random_histories = worlds.make_table, worlds.make_tiger, worlds.random_histories

pytestmark = pytest.mark.usefixtures("one_thread")


def left_aligned(histories: Prefixes, max_len: int = 4) -> torch.Tensor:
    return torch.from_numpy(histories.last(max_len).padded())


def test_tokens_of_levels_padding_and_start_never_meet():
    table = make_table()
    model = make_tiger(table, user_tokens=3)
    assert model.token_NL[0].eq(0).all() and {0, BOS}.isdisjoint(model.token_NL[1:].flatten().tolist())
    for level, size in enumerate(SIZES):
        start = FIRST_CODE + sum(SIZES[:level])
        assert model.level_tokens(level).tolist() == list(range(start, start + size))
        assert (model.token_NL[1:, level] - start).tolist() == table.codes_NL[:, level].tolist()
    users_U = torch.arange(10_000)
    token_U = model.user_token(users_U)
    assert token_U.min() == FIRST_CODE + sum(SIZES) and token_U.max() == model.embedding.num_embeddings - 1
    assert torch.bincount(token_U - token_U.min()).min() > 3_000


@pytest.mark.parametrize("user_tokens", [0, 7])
def test_every_score_is_the_brute_force_one(user_tokens):
    table, histories = make_table(), random_histories()
    model = make_tiger(table, user_tokens=user_tokens)
    scores_BN = score_items(model.writing(histories))
    np.testing.assert_allclose(scores_BN.numpy(), item_scores(model, histories, table), atol=1e-4)
    if not user_tokens:
        np.testing.assert_allclose(model.score(left_aligned(histories)).numpy(), scores_BN.numpy(), atol=1e-5)


def textbook_beam(scores, table, beams: int) -> list[int]:
    """Items of a beam, the best first, from the log-probabilities of the prefixes: `scores(prefix)`."""
    live = {(): 0.0}
    for level in range(table.levels):
        children = {tuple(sid[: level + 1]) for sid in table.codes_NL.tolist() if tuple(sid[:level]) in live}
        best = sorted(children, key=lambda prefix: -scores(prefix))[:beams]
        live = {prefix: scores(prefix) for prefix in best}
    return [table.items(prefix)[0] for prefix in live]


def prefix_scores(model, histories, row, table):
    """Log-probability of a prefix of codes after one history, step by step over the codes in use."""
    used = [np.unique(table.codes_NL[:, level]) for level in range(table.levels)]
    read = model.writing(histories.subset(np.array([row]))).read

    def score(prefix):
        total, tokens = 0.0, [BOS]
        for level, code in enumerate(prefix):
            with torch.no_grad():
                hidden_BGSD, _ = model.write(torch.tensor([[tokens]]), read)
                logits_C = model.head(hidden_BGSD[0, 0, -1], level)[used[level]]
            total += float(logits_C.log_softmax(0)[np.searchsorted(used[level], code)])
            tokens.append(model.starts[level] + code)
        return total

    return score


@pytest.mark.parametrize("beams", [1, 2, 3, 8])
def test_a_narrow_beam_is_the_textbook_one(beams):
    table, histories = make_table(), random_histories((2, 6, 9))
    model = make_tiger(table)
    found_BK, _ = recommend(model.writing(histories), trie_of(model.token_NL), beams)
    for row in range(len(histories)):
        assert found_BK[row].tolist() == textbook_beam(prefix_scores(model, histories, row, table), table, beams)


@pytest.mark.parametrize("beams", [1, 3, 5])
def test_prefixes_whose_items_are_all_excluded_take_no_beam(beams):
    """A narrow beam that must not answer some items is the textbook's over a catalogue without them."""
    table, histories = make_table(), random_histories((2, 3, 9, 12))
    model, rng = make_tiger(table), np.random.default_rng(0)
    excluded = [rng.choice(ITEMS, size=size, replace=False) for size in (0, 8, 16, 24)]
    found_BK, _ = recommend(model.writing(histories), trie_of(model.token_NL), beams, beams, excluded)
    for row, ids in enumerate(excluded):
        left_N = np.setdiff1d(np.arange(ITEMS), ids)
        rest = SidTable(table.codes_NL[left_N], table.level_sizes)
        expected = textbook_beam(prefix_scores(model, histories, row, table), rest, beams)
        assert found_BK[row].tolist() == left_N[expected].tolist()


def test_later_codes_never_change_earlier_logits_and_each_earlier_one_counts():
    model, histories = make_tiger(), random_histories()
    read = model.writing(histories).read
    token_BGS = torch.randint(FIRST_CODE, FIRST_CODE + sum(SIZES), (len(histories), 2, 4))
    with torch.no_grad():
        before, _ = model.write(token_BGS, read)
        for step in range(4):
            changed = token_BGS.clone()
            changed[:, 0, step] = FIRST_CODE + (changed[:, 0, step] - FIRST_CODE + 1) % sum(SIZES)
            after, _ = model.write(changed, read)
            torch.testing.assert_close(after[:, 0, :step], before[:, 0, :step])
            assert (after[:, 0, step:] - before[:, 0, step:]).abs().amax(-1).min() > 1e-5
            torch.testing.assert_close(after[:, 1], before[:, 1])  # another group never notices


def test_padding_and_company_never_change_logits():
    model, histories = make_tiger(user_tokens=5), random_histories()
    together = model.logits(*model.collate(histories))
    for row in range(len(histories)):
        alone = model.logits(*model.collate(histories.subset(np.array([row]))))
        for level in range(3):
            torch.testing.assert_close(alone[level][0], together[level][row], atol=1e-5, rtol=1e-5)
    narrow = model.collate(histories.subset(np.array([1])))
    padded = (torch.nn.functional.pad(narrow[0], (0, 3)), *narrow[1:])
    torch.testing.assert_close(model.logits(*padded)[2], model.logits(*narrow)[2], atol=1e-5, rtol=1e-5)


def test_every_item_of_the_history_its_place_and_the_user_count():
    model = make_tiger(user_tokens=5)

    def read(items, user=1):
        history_BT = torch.tensor([[item + 1 for item in items]])
        return model.logits(history_BT, torch.tensor([user]), torch.tensor([0]))[0]

    before = read([3, 4, 5])
    for changed in ([2, 4, 5], [3, 2, 5], [3, 4, 2], [4, 3, 5]):
        assert (read(changed) - before).abs().max() > 1e-5
    tokens = model.user_token(torch.arange(50))
    other = int((tokens != tokens[1]).nonzero()[0])
    assert (read([3, 4, 5], other) - before).abs().max() > 1e-5


def test_loss_is_the_brute_force_mean():
    table, histories = make_table(), random_histories()
    model = make_tiger(table)
    batch = model.collate(histories)
    losses = []
    for level, logits_BGC in enumerate(model.logits(*batch)):
        for logits_C, target in zip(logits_BGC[:, 0], histories.targets_B, strict=True):
            losses.append(-logits_C.log_softmax(0)[table.codes_NL[target, level]].item())
    assert model.loss(*batch).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_items_behind_one_sid_share_its_score_and_stand_by_priority():
    table, histories = make_table(shared=True), random_histories((3, 7))
    model = make_tiger(table)
    priority_N = np.arange(ITEMS)  # the higher id first
    items_BK, scores_BK = recommend(model.writing(histories), trie_of(model.token_NL, priority_N), ITEMS)
    twin_BN = item_scores(model, histories, table)
    for row in range(2):
        assert sorted(items_BK[row].tolist()) == list(range(ITEMS))
        np.testing.assert_allclose(scores_BK[row].numpy(), twin_BN[row][items_BK[row].numpy()], atol=1e-4)
        place = {item: at for at, item in enumerate(items_BK[row].tolist())}
        for first in range(0, ITEMS - 1, 3):
            assert place[first + 1] + 1 == place[first]


def test_excluded_items_are_never_answered_and_the_rest_keep_their_order():
    table, histories = make_table(shared=True), random_histories((3, 7))
    model = make_tiger(table)
    trie = trie_of(model.token_NL)
    everything_BK, _ = recommend(model.writing(histories), trie, ITEMS)
    exclude = [np.array([0, 1, 2, 5]), np.zeros(0, dtype=np.int64)]
    left_BK, scores_BK = recommend(model.writing(histories), trie, ITEMS, exclude=exclude)
    for row in range(2):
        kept = [item for item in everything_BK[row].tolist() if item not in exclude[row]]
        assert left_BK[row].tolist() == kept + [-1] * len(exclude[row])
        assert scores_BK[row, len(kept) :].isneginf().all()
    with pytest.raises(ValueError, match="k must be at least 1"):
        recommend(model.writing(histories), trie, 0)


def test_fresh_logits_are_of_size_one():
    """Tied embeddings of size one need a scaled state: without it the loss starts far above the uniform one."""
    torch.manual_seed(0)
    model = TIGER.of_table(make_table(40, (16, 16, 16)), hidden_dim=64, num_blocks=2, num_heads=4, head_dim=16).eval()
    logits = model.logits(*model.collate(random_histories((3, 9, 14, 20), items=40)))
    assert 0.5 < torch.cat([part.flatten() for part in logits]).std() < 2.0


def test_any_level_sizes_do():
    for sizes in [(3, 10, 10), (10, 3, 4), (40,), (3, 4, 3, 2)]:
        table = make_table(20, sizes)
        model, histories = make_tiger(table), random_histories((2, 5), items=20)
        np.testing.assert_allclose(
            score_items(model.writing(histories)).numpy(), item_scores(model, histories, table), atol=1e-4
        )


def test_a_saved_model_loads_as_the_same_model(tmp_path):
    model, histories = make_tiger(user_tokens=4), random_histories()
    model.save_pretrained(tmp_path)
    again = TIGER.from_pretrained(str(tmp_path)).eval()
    assert torch.equal(score_items(again.writing(histories)), score_items(model.writing(histories)))
    assert (again.max_len, again.num_items, again.level_sizes) == (4, ITEMS, SIZES)


def test_flops_are_those_of_torchs_counter():
    model, beams = make_tiger(), 3
    trie, histories = trie_of(model.token_NL), random_histories((4,))
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        recommend(model.writing(histories), trie, beams)
    # The counter sees the head over codes in use and the beam's own past as it grows; both differ a little.
    assert model.flops(4, beams) == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert model.flops(9, beams) == model.flops(4, beams) > model.flops(1, beams) == model.flops(0, beams)


def test_a_history_longer_than_max_len_is_refused_and_collate_cuts_it():
    model = make_tiger()
    with pytest.raises(ValueError, match="history of 5 items is longer than max_len 4"):
        model.read(torch.ones(1, 5, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    history_BT, _, target_B = model.collate(random_histories((9,)))
    assert history_BT.shape == (1, 4) and len(target_B) == 1


def test_training_teaches_the_rule_of_a_small_world():
    """The next item is the last one plus one; a model that learns it puts that item first."""
    table = make_table()
    torch.manual_seed(0)
    model = TIGER.of_table(table, max_len=4, **(SHAPE | {"hidden_dim": 32, "ffn_dim": 64, "dropout": 0.0}))
    starts = np.random.default_rng(0).integers(0, ITEMS, size=256)
    lists = Prefixes.of_lists([(start + np.arange(4)) % ITEMS for start in starts])
    histories = Prefixes(lists.items_M, lists.start_B, lists.length_B - 1, lists.user_B)
    batch = model.collate(histories)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    moved = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(*batch).backward()
        optimizer.step()
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, moved[name])] == []
    best_B1, _ = recommend(model.eval().writing(histories), trie_of(model.token_NL), 1, beams=5)
    assert (best_B1[:, 0].numpy() == histories.targets_B).mean() > 0.95


def test_beams_share_the_encoders_keys(monkeypatch):
    model, histories = make_tiger(), random_histories((4, 9))
    calls = []
    forward = type(model.encoder).forward
    monkeypatch.setattr(type(model.encoder), "forward", lambda *args: calls.append(1) or forward(*args))
    writing = model.writing(histories)
    recommend(writing, trie_of(model.token_NL), 8)
    assert len(calls) == 1, "the history is read once"
    assert isinstance(writing, Writing) and all(keys.shape[0] == 2 for keys, _ in writing.read.memory)
