"""The mixture against sums written out event by event, and what its fit must recover."""

import numpy as np
import pytest
from scipy.stats import vonmises

from recllm.needs.mixture import Log, Mixture, class_evidence, class_likelihoods, densities, posterior
from recllm.needs.mixture_fit import expect, fit, start_counts

N, K, D, S, C, V, U = 3, 2, 4, 2, 3, 6, 5


def shares(rng, *shape):
    return rng.dirichlet(np.ones(shape[-1]), shape[:-1])


@pytest.fixture
def world():
    """A random mixture and a log of 40 events, one of them at an unknown hour."""
    rng = np.random.default_rng(1)
    category_V = np.array([0, 0, 1, 1, 2, 2])
    near_SV = rng.random((S, V)) + 0.1
    near_SV /= np.stack([np.bincount(category_V, row_V) for row_V in near_SV])[:, category_V]
    mixture = Mixture(
        class_K=shares(rng, K),
        prior_DKN=shares(rng, D, K, N),
        peak_NP=rng.uniform(-np.pi, np.pi, (N, 2)),
        kappa_NP=rng.uniform(1, 9, (N, 2)),
        weight_NP=shares(rng, N, 2),
        scene_NS=shares(rng, N, S),
        category_NC=shares(rng, N, C),
        accident_C=shares(rng, C),
        popular_V=near_SV[0],
        near_SV=near_SV,
        accidents=0.3,
        returns=0.4,
    )
    user_E, item_E = np.sort(rng.integers(U, size=40)), rng.integers(V, size=40)
    category_E = category_V[item_E]
    alike_E, same_E = (
        np.array([((user_E[:e] == user_E[e]) & (code[:e] == code[e])).sum() for e in range(40)])
        for code in (category_E, item_E)
    )
    hour_E = rng.uniform(0, 24, 40).round(2)
    hour_E[7] = np.nan
    day_E, scene_E = rng.integers(D, size=40), rng.integers(S, size=40)
    log = Log(user_E, hour_E, day_E, scene_E, category_E, item_E, alike_E, same_E, category_V, U, D, S, C)
    return mixture, log


def chances(mixture, log, event):
    """p(event | need) of each need and p(event, accident), term by term."""
    hour, item, scene = log.hour_E[event], log.item_E[event], log.scene_E[event]
    alike, same = log.alike_E[event], log.same_E[event]
    venue = mixture.near_SV[scene, item]
    if alike:
        venue = (1 - mixture.returns) * venue + mixture.returns * same / alike
    needful = []
    for need in range(N):
        density = 1 / 24
        if not np.isnan(hour):
            angle = hour / 24 * 2 * np.pi
            parts = [
                mixture.weight_NP[need, p] * vonmises.pdf(angle, mixture.kappa_NP[need, p], mixture.peak_NP[need, p])
                for p in range(2)
            ]
            density = sum(parts) * 2 * np.pi / 24
        category = mixture.category_NC[need, log.category_E[event]]
        needful.append(density * mixture.scene_NS[need, scene] * category * venue)
    anywhere = mixture.accident_C[log.category_E[event]] * mixture.popular_V[item]
    return np.array(needful), mixture.accidents * anywhere / 24 / S


def by_hand(mixture, log):
    """Joint posterior over classes of users, written out: needs and accidents of each event."""
    need_EN, accident_E = np.zeros((len(log), N)), np.zeros(len(log))
    likelihood = 0.0
    for user in range(U):
        rows = np.flatnonzero(log.user_E == user)
        whole_K = mixture.class_K.copy()
        for event in rows:
            needful_N, accident = chances(mixture, log, event)
            whole_K *= 0.7 * mixture.prior_DKN[log.day_E[event]] @ needful_N + accident
        likelihood += np.log(whole_K.sum())
        for event in rows:
            needful_N, accident = chances(mixture, log, event)
            part_KN = 0.7 * mixture.prior_DKN[log.day_E[event]] * needful_N
            total_K = part_KN.sum(1) + accident
            member_K = whole_K / whole_K.sum()
            need_EN[event] = (member_K / total_K) @ part_KN
            accident_E[event] = (member_K / total_K).sum() * accident
    return need_EN, accident_E, likelihood


def test_posterior_and_likelihood_are_the_sums_written_out(world):
    mixture, log = world
    need_EN, accident_E, likelihood = by_hand(mixture, log)
    counts, found, evidence_UK = expect(mixture, log)
    np.testing.assert_allclose(counts.need_EN, need_EN, rtol=1e-6)
    np.testing.assert_allclose(counts.accident_E, accident_E, rtol=1e-6)
    assert found == pytest.approx(likelihood)
    read = posterior(mixture, log, evidence_UK, read=True)
    np.testing.assert_allclose(read.need_EN, need_EN, rtol=1e-6)
    np.testing.assert_allclose(read.need_EN.sum(1) + read.accident_E, 1)
    np.testing.assert_allclose(read.log_odds_E, np.log(need_EN.sum(1) / accident_E), rtol=1e-6)


def test_an_event_that_was_not_read_adds_its_own_evidence(world):
    mixture, log = world
    whole = posterior(mixture, log, expect(mixture, log)[2], read=True)
    chance_EK = class_likelihoods(mixture, log, densities(mixture, log))
    last_E = np.array([np.flatnonzero(log.user_E == user)[-1] for user in np.unique(log.user_E)])
    own_UK = np.zeros((U, K))
    np.add.at(own_UK, log.user_E[last_E], np.log(chance_EK[last_E]))
    later = posterior(mixture, log, class_evidence(chance_EK, log) - own_UK, read=False)
    np.testing.assert_allclose(later.need_EN[last_E], whole.need_EN[last_E])


def planted(seed=0, size=4000, noise=0.25):
    """Two needs of three categories each, one of them shared, and accidents; needs with their own hours."""
    rng = np.random.default_rng(seed)
    need_E = np.where(rng.random(size) < noise, -1, rng.integers(2, size=size))
    hour_E = np.where(need_E < 0, rng.random(size) * 24, np.where(need_E == 0, 8, 19) + rng.normal(0, 1, size)) % 24
    item_E = np.where(need_E < 0, rng.integers(10, size=size), rng.integers(6, size=size) + 4 * (need_E > 0))
    category_V = np.repeat(np.arange(5), 2)
    zero_E = np.zeros(size, dtype=np.int64)
    user_E = np.sort(rng.integers(100, size=size))
    log = Log(user_E, hour_E, zero_E, zero_E, category_V[item_E], item_E, zero_E, zero_E, category_V, 100, 3, 1, 5)
    return log, need_E


def test_a_fit_recovers_rates_hours_and_which_categories_a_need_covers():
    log, need_E = planted()
    start_E = np.where(log.hour_E < 13, 0, 1)
    found = fit(log, start_counts(log, start_E, classes=1, seed=0), steps=40)
    assert found.mixture.accidents == pytest.approx(0.25, abs=0.03)
    covers_NC = found.mixture.category_NC > 0.01
    assert covers_NC.tolist() == [[True, True, True, False, False], [False, False, True, True, True]]
    hours_NP = found.mixture.peak_NP * 24 / (2 * np.pi) % 24
    assert np.abs(hours_NP.mean(1) - [8, 19]).max() < 0.5
    dropped_E = found.posterior.log_odds_E < 0
    assert (need_E[dropped_E] < 0).mean() > 0.8 and dropped_E[need_E < 0].mean() > 0.6
    assert (found.posterior.need_E == need_E)[need_E >= 0].mean() > 0.98


def test_likelihood_grows_and_going_on_goes_on():
    log, _ = planted(seed=1)
    start = start_counts(log, np.where(log.hour_E < 13, 0, 1), classes=2, seed=0)
    few, many = (fit(log, start, steps) for steps in (2, 20))
    assert many.likelihood > few.likelihood + 10
    on = fit(log, (expect(many.mixture, log)[0], many.mixture.category_NC > 0), 5, settled=True, last=many.mixture)
    assert on.likelihood > many.likelihood - 1
