import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recllm.data.histories import Prefixes
from recllm.data.interactions import Sequences
from recllm.data.long_history import HardSearch, LongHistory, Tiers

ITEMS, CODES = 12, 4
CODE_N = np.array([0, 1, 2, 3, 0, 1, 2, 0, 0, 1, 3, 3])
TIERS = Tiers(np.random.default_rng(0).integers(0, 3, size=(ITEMS, CODES)).astype(np.uint8), 3)
histories_of_items = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=25), min_size=1, max_size=4)


def build(histories, short=3, tiers=TIERS) -> LongHistory:
    return LongHistory(Prefixes.of_lists([np.array(h, dtype=int) for h in histories]), CODE_N, CODES, short, tiers)


def latest_by_hand(history, code, n, short=3) -> list[int]:
    long = history[: max(len(history) - short, 0)]
    return [item for item in reversed(long) if CODE_N[item] == code][:n]


def everything(index: LongHistory, n: int) -> np.ndarray:
    user_Q, code_Q = np.divmod(np.arange(index.users * CODES), CODES)
    return index.latest(user_Q, code_Q, n)


@given(histories_of_items, st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_the_latest_of_each_code_by_hand(histories, n):
    found_Qn = everything(build(histories), n)
    for user, history in enumerate(histories):
        for code in range(CODES):
            row = found_Qn[user * CODES + code]
            expected = latest_by_hand(history, code, n)
            assert row[: len(expected)].tolist() == expected and (row[len(expected) :] == -1).all()


@given(histories_of_items, st.integers(0, 20), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_appending_equals_rebuilding(histories, before, short, seed):
    first = [history[:before] for history in histories]
    events = [(user, item) for user, history in enumerate(histories) for item in history[before:]]
    # Users come interleaved, each in its own order.
    order = np.random.default_rng(seed).permutation([user for user, _ in events]).tolist() if events else []
    rest = {user: iter(history[before:]) for user, history in enumerate(histories)}
    index, whole = build(first, short), build(histories, short)
    for user in order:
        index.append(user, next(rest[user]))
    assert np.array_equal(everything(index, 30), everything(whole, 30))
    assert np.array_equal(everything(index, 2), everything(whole, 2))
    assert np.array_equal(index.counts_UKT, whole.counts_UKT)
    assert len(index) == len(whole)
    for user, history in enumerate(histories):
        assert index.recent(user).tolist() == whole.recent(user).tolist() == history[-short:]


def test_counts_by_hand_and_as_a_recount():
    tiers = Tiers(np.array([[0, 1], [1, 1], [2, 0]], dtype=np.uint8), 3)
    index = LongHistory(Prefixes.of_lists([np.array([0, 1, 2, 0, 0])]), np.array([0, 1, 1]), 2, 1, tiers)
    # The long part is 0, 1, 2, 0: code 0 meets tiers 0, 1, 2, 0 and code 1 tiers 1, 1, 0, 1.
    assert index.counts_UKT.tolist() == [[[2, 1, 1], [1, 3, 0]]]
    before = index.counts_UKT.copy()
    index.append(0, 2)
    assert (index.counts_UKT - before).tolist() == [[[1, 0, 0], [0, 1, 0]]], "one addition a code"
    many = np.random.default_rng(0).integers(0, ITEMS, size=500)
    recount = np.zeros((CODES, 3), dtype=int)
    for item in many:
        for code in range(CODES):
            recount[code, TIERS.tier_NK[item, code]] += 1
    assert TIERS.histograms(many, np.zeros(500, dtype=int), 1)[0].tolist() == recount.tolist()


def test_an_event_costs_nine_bytes_and_growing_is_rare():
    index = build([[]], short=1, tiers=None)
    rooms, dearest = set(), 0.0
    items = np.random.default_rng(1).integers(0, ITEMS, size=30_000)
    for item in items:
        index.append(0, int(item))
        rooms.add(len(index._log_item))
        dearest = max(dearest, index.event_bytes / len(index) if len(index) > 2_000 else 0.0)
    assert len(index) == 29_999
    assert 8 <= dearest <= 9.1, "bytes an event at any moment, just after room was made included"
    # Room grows by an eighth: the copies of all growths together are less than nine times the events.
    assert sum(rooms) <= 10 * len(index)
    assert build([items.tolist()], short=1, tiers=None).event_bytes == 4 * len(index)
    assert index.user_bytes == build([[]], short=1, tiers=None).user_bytes


def test_built_from_the_sequences_of_a_data_set():
    sequences = Sequences.from_lists([[0, 1, 2, 3, 4], [5], [6, 7, 8, 9]])
    index = LongHistory.of_sequences(sequences, CODE_N, CODES, short=2)
    assert index.counts_UKT is None
    twin = build([[0, 1, 2, 3, 4], [5], [6, 7, 8, 9]], short=2, tiers=None)
    assert np.array_equal(everything(index, 5), everything(twin, 5)) and len(index) == 5


@pytest.mark.parametrize("threshold", [0, 1, 3, 5])
@pytest.mark.parametrize("k", [0, 1, 2])
def test_hard_search_by_hand(k, threshold):
    rng, n, short = np.random.default_rng(5), 5, 3
    near_KJ = np.array([[1, 2], [0, 3], [3, 0], [2, 1]])[:, :k]
    search = HardSearch(CODE_N, n, near_KJ, threshold)
    histories = [rng.integers(0, ITEMS, size=length).tolist() for length in (0, 2, 3, 4, 9, 20, 60)]
    prefixes = Prefixes.of_lists([np.array(h, dtype=int) for h in histories])
    index = build(histories, short, None)
    for code in range(CODES):
        code_B = np.full(len(histories), code)
        expected = []
        for history in histories:
            items = latest_by_hand(history, code, n)
            if len(items) < threshold:
                items = items + [item for near in near_KJ[code] for item in latest_by_hand(history, near, n)]
            expected.append((items + [-1] * n)[:n])
        assert search.ask(index, np.arange(len(histories)), code_B).tolist() == expected
        assert search.scan(prefixes.before_last(short), code_B).tolist() == expected


def test_neighbours_change_nothing_above_the_threshold():
    histories = [np.random.default_rng(seed).integers(0, ITEMS, size=40).tolist() for seed in range(6)]
    index, near_KJ = build(histories), np.array([[1], [0], [3], [2]])
    user_Q, code_Q = np.divmod(np.arange(len(histories) * CODES), CODES)
    alone_Qn = HardSearch(CODE_N, 30, near_KJ, 0).ask(index, user_Q, code_Q)
    filled_Qn = HardSearch(CODE_N, 30, near_KJ, 8).ask(index, user_Q, code_Q)
    enough_Q = (alone_Qn >= 0).sum(1) >= 8
    assert enough_Q.any() and not enough_Q.all()
    assert np.array_equal(filled_Qn[enough_Q], alone_Qn[enough_Q])
    assert ((filled_Qn >= 0).sum(1) > (alone_Qn >= 0).sum(1))[~enough_Q].all()


def test_what_is_refused():
    with pytest.raises(ValueError, match="short must be at least 1"):
        build([[1]], short=0)
    with pytest.raises(ValueError, match="first codes must lie in 0 to 1"):
        LongHistory(Prefixes.of_lists([np.array([1])]), CODE_N, 2)
    with pytest.raises(ValueError, match="threshold must lie between 0 and the 3 items"):
        HardSearch(CODE_N, 3, np.zeros((CODES, 1), dtype=int), 4)
    index = build([[1, 2]])
    for user, item in [(1, 0), (-1, 0), (0, ITEMS), (0, -1)]:
        with pytest.raises(IndexError, match="is unknown"):
            index.append(user, item)
