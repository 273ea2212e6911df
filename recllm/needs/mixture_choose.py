"""How many needs and how many classes of users a log has: as many as its information criterion is best with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from recllm.needs.mixture import HOURS, Log, Mixture, densities
from recllm.needs.mixture_fit import Counts, Fit, expect, fit, spread, start_counts

# Pairs of needs that are tried in a round of merging, and steps of such a try.
_PAIRS, _TRY_STEPS = 3, 5


def choose(
    log: Log, label_E: np.ndarray, classes: Sequence[int], steps: int, seed: int
) -> tuple[Fit, dict[str, dict[int, float]]]:
    """The fit that has the best criterion, and the criteria by number of needs and of classes.

    label_E: need that each event starts from, more of them than there will be. It is fitted, then needs that are alike
    are merged, and needs that hardly differ from accidents struck out, for as long as that betters the criterion; then
    the number of classes is chosen. steps: of the first and of the last fit.
    """
    middle = sorted(classes)[len(classes) // 2]
    best = fit(log, start_counts(log, label_E, middle, seed), steps)
    scores: dict[str, dict[int, float]] = {"needs": {best.mixture.needs: best.criterion}, "classes": {}}
    while better := _with_fewer_needs(log, best):
        best = better
        scores["needs"][best.mixture.needs] = best.criterion
    tries = {count: _with_classes(log, best, count, steps // 3, seed) for count in classes}
    scores["classes"] = {count: found.criterion for count, found in tries.items()}
    best = max(tries.values(), key=lambda found: found.criterion)
    return _further(log, best, steps), scores


def _with_fewer_needs(log: Log, done: Fit) -> Fit | None:
    """The fit after the first step down, of those that look best, that betters the criterion; None where none does."""
    if done.mixture.needs < 2:
        return None
    counts = expect(done.mixture, log)[0]
    # What an event's likelihood loses without a need, summed: the least where an accident explains it as well.
    weakest = int(-np.log1p(-np.minimum(counts.need_EN, 1 - 1e-6)).sum(0).argmin())
    steps = [*((other, one) for one, other in _most_alike(done.mixture)[:_PAIRS]), (weakest, None)]
    for gone, into in steps:
        found = fit(log, _without(counts, done.mixture, gone, into), _TRY_STEPS, settled=True)
        if found.criterion > done.criterion:
            return found
    return None


def _most_alike(mixture: Mixture) -> list[tuple[int, int]]:
    """Pairs of needs, those with the most common hours and categories first (Bhattacharyya's coefficients).

    Scenes do not count: one need in two places is what merging is to find.
    """
    hour_HN = np.sqrt(mixture.peaks(np.arange(0, HOURS, 0.25)).sum(-1))
    alike_NN = (hour_HN.T @ hour_HN) * (np.sqrt(mixture.category_NC) @ np.sqrt(mixture.category_NC).T)
    one_P, other_P = np.triu_indices(mixture.needs, 1)
    order_P = np.argsort(-alike_NN[one_P, other_P], kind="stable")
    return [(int(one_P[pair]), int(other_P[pair])) for pair in order_P]


def _without(counts: Counts, mixture: Mixture, gone: int, into: int | None) -> tuple[Counts, np.ndarray]:
    """Counts and covered cells without a need, which is counted to another, or to the accidents where `into` is None.

    Hours start anew from the events.
    """
    covers_NC = mixture.category_NC > 0
    need_EN, day_DKN, accident_E = counts.need_EN.copy(), counts.day_DKN.copy(), counts.accident_E
    if into is None:
        accident_E = accident_E + need_EN[:, gone]
    else:
        covers_NC[into] |= covers_NC[gone]
        need_EN[:, into] += need_EN[:, gone]
        day_DKN[..., into] += day_DKN[..., gone]
    need_EN, day_DKN = np.delete(need_EN, gone, 1), np.delete(day_DKN, gone, 2)
    again_E = np.minimum(counts.again_E, need_EN.sum(1))
    left = replace(counts, need_EN=need_EN, day_DKN=day_DKN, accident_E=accident_E, again_E=again_E)
    return left, np.delete(covers_NC, gone, 0)


def _with_classes(log: Log, done: Fit, classes: int, steps: int, seed: int) -> Fit:
    """The fit with another number of classes, which start from k-means."""
    counts, _ = spread(log, done.posterior.need_EN, classes, seed)
    counts = replace(counts, again_E=counts.need_EN.sum(1) * densities(done.mixture, log).again_E)
    return fit(log, (counts, done.mixture.category_NC > 0), steps, settled=True)


def _further(log: Log, done: Fit, steps: int) -> Fit:
    """The fit some steps on."""
    counts = expect(done.mixture, log)[0]
    return fit(log, (counts, done.mixture.category_NC > 0), steps, settled=True, last=done.mixture)
