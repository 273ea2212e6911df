"""The graph of users, contexts and venues: its propagation against a dense twin, what it learns of a plain world."""

import itertools
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recllm.needs.answers import Askable
from recllm.needs.counting import Cells
from recllm.needs.graph import GraphOptions, VenueGraph
from recllm.needs.rewards import Places

counting = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("test_counting.py")), run_name="counting"))
ITEMS = 12


def graph_of(rows, **options) -> VenueGraph:
    visits = counting.visits_of(rows)
    askable = Askable.of(Places([""] * ITEMS, ["Bar"] * ITEMS, [""] * ITEMS, frozenset(range(ITEMS))))
    return VenueGraph(visits, askable, Cells.of(visits.frame), GraphOptions(width=8, **options))


def test_vectors_are_those_of_the_normalised_matrix():
    rng = np.random.default_rng(0)
    rows = [
        (user, int(rng.integers(ITEMS)), float(rng.random() * 24), int(rng.integers(7)), "", "fit")
        for user in range(4) for _ in range(9)
    ]  # fmt: skip
    graph = graph_of(rows, layers=2)
    model = graph.model
    nodes = len(model.node_ND)
    weight_NN = np.zeros((nodes, nodes))
    for user, context_2, venue in zip(*graph._nodes(np.arange(36)), strict=True):
        for near in (user, *context_2):
            weight_NN[near, venue] += 1
            weight_NN[venue, near] += 1
    degree_N = np.maximum(weight_NN.sum(1), 1e-9)
    step_NN = weight_NN / np.sqrt(np.outer(degree_N, degree_N))
    layer_ND = model.node_ND.detach().numpy()
    for found in model():
        assert np.allclose(found.detach().numpy(), layer_ND, atol=1e-5)
        layer_ND = step_NN @ layer_ND
    asked = np.array([3, 20])
    mean_ND = np.mean([found.detach().numpy() for found in model()], 0)
    user_B, context_B2, _ = graph._nodes(asked)
    logit_BC = (mean_ND[user_B] + mean_ND[context_B2].sum(1)) @ mean_ND[-ITEMS:].T
    share_BC = np.exp(logit_BC) / np.exp(logit_BC).sum(1, keepdims=True)
    assert np.allclose(graph.scorer()(asked), share_BC, atol=1e-5)


def world() -> list[tuple]:
    """In the morning everybody goes to places 0 to 3, in the evening odd users to 4 to 7 and even ones to 8 to 11."""
    rng, rows = np.random.default_rng(1), []
    for user in range(30):
        for visit in range(16):
            morning = rng.random() < 0.5
            item = int(rng.integers(4)) if morning else (4 if user % 2 else 8) + int(rng.integers(4))
            # The last users have no fitted visit, as sessions of the last weeks.
            fold = "test" if visit == 15 or user >= 28 else "fit"
            rows.append((user, item, 8.0 if morning else 20.0, 1, "", fold))
    return rows


@pytest.fixture(scope="module")
def fitted(one_thread):
    """The graph of that world after its last epoch."""
    graph, later = graph_of(world(), epochs=15, batch_size=64, lr=0.03), itertools.count()
    report = graph.fit(lambda score: float(next(later)))
    assert report.best_epoch == 14
    return graph


def test_it_learns_what_context_and_user_decide(fitted):
    rows = fitted.visits.rows("test")
    share_BC, visits = fitted.scorer()(rows), fitted.visits
    hour_B, user_B = visits.frame["hour"].to_numpy()[rows], visits.sequences.user_M[rows]
    assert (share_BC[hour_B == 8.0, :4].sum(1) > 0.6).mean() > 0.9
    evening_B = (hour_B == 20.0) & (user_B < 28)
    odd_BC, even_BC = share_BC[evening_B & (user_B % 2 == 1)], share_BC[evening_B & (user_B % 2 == 0)]
    assert (odd_BC[:, 4:8].sum(1) > odd_BC[:, 8:].sum(1)).all() and len(odd_BC)
    assert (even_BC[:, 8:].sum(1) > even_BC[:, 4:8].sum(1)).all() and len(even_BC)


def test_a_user_without_fitted_visits_is_known_by_the_visits_before(fitted):
    score, firsts = fitted.scorer(), fitted.visits.sequences.offsets_U1
    for user in (28, 29):
        late = np.array([firsts[user + 1] - 1])
        own, other = (slice(4, 8), slice(8, 12)) if user % 2 else (slice(8, 12), slice(4, 8))
        assert score(late)[0, own].sum() > score(late)[0, other].sum()
    first = score(firsts[[28]])
    assert np.isfinite(first).all() and first.sum() == pytest.approx(1, rel=1e-4)
