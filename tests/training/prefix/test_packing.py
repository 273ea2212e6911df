"""Packed groups against one forward a row, and the mask against its definition, on random rows of unequal length."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recllm.training.prefix.loss import per_sequence
from recllm.training.prefix.packing import IGNORED, assign, chunks, group_rows, pack

pytestmark = pytest.mark.usefixtures("one_thread")
_FILE = Path(__file__).with_name("packing_worlds.py")
worlds = SimpleNamespace(**runpy.run_path(str(_FILE), run_name="packing_worlds"))


def plain_logps(model, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Each answer token's log-probability by a forward of the row alone, without any padding."""
    if not answer:
        return torch.zeros(0)
    logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("most", [1, 2, 3, 12])
def test_packed_rows_score_like_rows_of_their_own(family, most):
    model = worlds.make_model(family).eval()
    for seed in range(5):
        rows, answers, (prompt, prompt_mask, completion, mask) = worlds.random_rows(seed)
        sequence = assign(group_rows(prompt, prompt_mask), most)
        packed = pack(prompt, prompt_mask, completion, mask, sequence)
        with torch.no_grad():
            logits = model(
                packed.ids_ST, position_ids=packed.position_ST, attention_mask=packed.mask_S1TT()
            ).logits.log_softmax(-1)
            found = packed.unpack(logits.gather(2, packed.label_ST.clamp_min(0)[..., None])[..., 0])
            for row, (prompt_ids, answer) in enumerate(zip(rows, answers, strict=True)):
                wanted = plain_logps(model, prompt_ids, answer)
                torch.testing.assert_close(found[row, : len(answer)], wanted, rtol=1e-5, atol=1e-5)
                assert not found[row, len(answer) :].any()


@given(st.integers(0, 10_000), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_the_mask_and_the_layout_are_what_they_are_said_to_be(seed, most):
    rows, answers, (prompt, prompt_mask, completion, mask) = worlds.random_rows(seed)
    sequence = assign(group_rows(prompt, prompt_mask), most)
    packed = pack(prompt, prompt_mask, completion, mask, sequence)
    seen = packed.mask_S1TT()[:, 0]
    for number in range(int(sequence.max()) + 1):
        members = [row for row in range(len(rows)) if sequence[row] == number]
        assert 1 <= len(members) <= most and len({tuple(rows[row]) for row in members}) == 1
        told = rows[members[0]]
        ids, positions, segments, labels = list(told[:-1]), list(range(len(told) - 1)), [0] * (len(told) - 1), []
        labels = [IGNORED] * len(ids)
        for place, row in enumerate(members, 1):
            answer = answers[row]
            assert packed.place_RC[row, : len(answer)].tolist() == [
                number * packed.ids_ST.shape[1] + len(ids) + step for step in range(len(answer))
            ]
            ids += [told[-1], *answer[:-1]] if answer else []
            positions += range(len(told) - 1, len(told) - 1 + len(answer))
            segments += [place] * len(answer)
            labels += answer
        size = len(ids)
        assert packed.ids_ST[number, :size].tolist() == ids
        assert packed.position_ST[number, :size].tolist() == positions
        assert packed.segment_ST[number].tolist() == segments + [-1] * (packed.ids_ST.shape[1] - size)
        assert packed.label_ST[number].tolist() == labels + [IGNORED] * (packed.ids_ST.shape[1] - size)
        for i in range(packed.ids_ST.shape[1]):
            wanted = [
                j == i or (i < size and j < i and (segments[j] == 0 or segments[j] == segments[i]))
                for j in range(packed.ids_ST.shape[1])
            ]
            assert seen[number, i].tolist() == wanted


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 8))
def test_groups_part_evenly_into_as_few_sequences_as_their_limit_allows(groups, most):
    group = torch.unique(torch.tensor(groups), return_inverse=True)[1]
    sequence = assign(group, most)
    assert sorted(set(sequence.tolist())) == list(range(int(sequence.max()) + 1))
    for number in range(int(group.max()) + 1):
        sizes = torch.bincount(sequence[group == number])
        sizes = sizes[sizes > 0]
        count = int((group == number).sum())
        assert len(sizes) == -(-count // most) and sizes.max() - sizes.min() <= 1


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(1, 8))
def test_chunks_hold_every_row_once_and_whole_sequences_within_the_limit(sequences, most):
    sequence = torch.unique(torch.tensor(sequences), return_inverse=True)[1]
    found = list(chunks(sequence, most))
    assert sorted(torch.cat(found).tolist()) == list(range(len(sequences)))
    for rows in found:
        held = set(sequence[rows].tolist())
        assert len(rows) == sum(int(number) in held for number in sequence)
        assert len(rows) <= most or len(held) == 1


def test_equal_prompts_are_one_group_whatever_the_padding_holds():
    ids = torch.tensor([[9, 1, 2], [7, 1, 2], [1, 1, 2], [0, 0, 2]])
    mask = torch.tensor([[0, 1, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]])
    group = group_rows(ids, mask)
    assert group[0] == group[1] and len(set(group.tolist())) == 3


@pytest.mark.parametrize(("completion", "wanted"), [(24, 8), (64, 8), (4000, 1)])
def test_long_completions_part_into_several_sequences(completion, wanted):
    assert per_sequence(240, completion, 8, width=576) == wanted
