"""Too many needs to start from are merged, a need of accidents is struck out, and classes are told from the log."""

import numpy as np

from recllm.needs.mixture import Log
from recllm.needs.mixture_choose import choose


def planted(seed=0, users=200, each=20):
    """Users of two kinds, each with one of two needs nine times of ten; a fifth of all visits accidental."""
    rng = np.random.default_rng(seed)
    size = users * each
    user_E = np.repeat(np.arange(users), each)
    need_E = (user_E + (rng.random(size) < 0.1)) % 2
    hour_E = (np.where(need_E == 0, 9, 17) + rng.normal(0, 1.5, size)) % 24
    item_E = rng.integers(6, size=size) + 2 * need_E
    accidental_E = rng.random(size) < 0.2
    hour_E[accidental_E] = rng.random(accidental_E.sum()) * 24
    item_E[accidental_E] = rng.integers(8, size=accidental_E.sum())
    zero_E = np.zeros(size, dtype=np.int64)
    category_V = np.repeat(np.arange(4), 2)
    log = Log(user_E, hour_E, zero_E, zero_E, category_V[item_E], item_E, zero_E, zero_E, category_V, users, 3, 1, 4)
    return log, need_E, accidental_E


def test_six_needs_become_two_and_two_kinds_of_users_are_seen():
    log, need_E, accidental_E = planted()
    found, scores = choose(log, (log.hour_E // 4).astype(np.int64), (1, 2, 4), steps=20, seed=0)
    assert found.mixture.needs == 2 and max(scores["needs"]) == 6
    assert len(found.mixture.class_K) == 2
    agree = (found.posterior.need_E == need_E)[~accidental_E].mean()
    assert max(agree, 1 - agree) > 0.95
    counted = [scores["needs"][count] for count in sorted(scores["needs"], reverse=True)]
    assert counted == sorted(counted), "every step down betters the criterion"
