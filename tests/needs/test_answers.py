"""Answers by scores: ties in order, categories by the sums of their services, the shape of the contract."""

import numpy as np
import pytest

from recllm.needs.answers import Askable, NeedsAnswers, answer_by_scores, joined
from recllm.needs.rewards import Places

CATEGORY_N = ["Bar", "Gym", "Bar", "", "Zoo", "Gym", "Bar", "Zoo", "Gym", "Bar", "Bar", "Zoo", "Gym", "Bar"]
# Item 9 has a category and may not be answered; item 3 has none.
CANDIDATES = [item for item in range(14) if item not in (3, 9)]
PLACES = Places([f"place {i}" for i in range(14)], CATEGORY_N, ["all"] * 14, frozenset(CANDIDATES))


def test_services_and_categories_are_those_of_sorting_everything():
    askable = Askable.of(PLACES)
    assert askable.items_C.tolist() == CANDIDATES
    scores_EC = np.random.default_rng(0).integers(0, 4, (300, len(askable))).astype(float)
    found = answer_by_scores(lambda rows: scores_EC[rows], np.arange(300), askable)
    for row, score_C in enumerate(scores_EC):
        best = sorted(range(len(askable)), key=lambda column: (-score_C[column], column))[:10]
        assert found.services_EK[row].tolist() == [CANDIDATES[column] for column in best]
        sums = dict.fromkeys(["Bar", "Gym", "Zoo"], 0.0)
        for item, score in zip(CANDIDATES, score_C, strict=True):
            sums[CATEGORY_N[item]] += score
        assert found.categories_EK[row] == sorted(sums, key=lambda name: (-sums[name], name))
    assert found.needs is None and len(found) == 300


def test_fewer_services_than_ten_are_padded():
    small = Askable.of(Places(["a", "b"], ["Bar", "Gym"], ["", ""], frozenset([0, 1])))
    found = answer_by_scores(lambda rows: np.array([[0.1, 0.9]]), np.zeros(1, dtype=int), small)
    assert found.services_EK.tolist() == [[1, 0, *[-1] * 8]]


def test_columns_are_told_from_items_that_may_not_be_answered():
    askable = Askable.of(PLACES)
    assert askable.columns(np.array([0, 3, 4, 9, 13, 500])).tolist() == [0, -1, 3, -1, 11, -1]


@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_scores_that_cannot_be_summed_are_refused(bad):
    askable = Askable.of(PLACES)
    with pytest.raises(ValueError, match="numbers from 0 on"):
        answer_by_scores(lambda rows: np.full((len(rows), len(askable)), bad), np.arange(2), askable)


def test_answers_have_one_shape():
    with pytest.raises(ValueError, match="services of shape"):
        NeedsAnswers(None, None, [["Bar"]], np.zeros((1, 9), dtype=np.int64))
    with pytest.raises(ValueError, match="not as many"):
        NeedsAnswers(["a", "b"], None, [["Bar"]], np.zeros((1, 10), dtype=np.int64))
    silent = NeedsAnswers(None, None, [["Bar"]], np.zeros((1, 10), dtype=np.int64))
    stating = NeedsAnswers(["a need"], ["a type"], [["Gym"]], np.ones((1, 10), dtype=np.int64))
    with pytest.raises(ValueError, match="some state needs"):
        joined([silent, stating])
    both = joined([stating, stating]).take(np.array([1, 0]))
    assert both.needs == ["a need"] * 2 and both.categories_EK == [["Gym"]] * 2 and both.services_EK.shape == (2, 10)
