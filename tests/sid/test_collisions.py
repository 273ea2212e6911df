import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recllm.sid.collisions import resolve_collisions
from recllm.sid.quantizer import collision_rate, level_report, row_ids, table_report


def world(seed: int, items: int, sizes: tuple[int, ...], width: int = 3):
    rng = np.random.default_rng(seed)
    centroids = [rng.normal(size=(size, width)).astype(np.float32) for size in sizes]
    latents_ND = rng.normal(size=(items, width)).astype(np.float32)
    codes_NL = np.stack([rng.integers(size, size=items) for size in sizes], axis=1).astype(np.int32)
    return codes_NL, latents_ND, centroids


def reconstruction(codes_NL: np.ndarray, centroids: list[np.ndarray]) -> np.ndarray:
    return sum(centroid_KD[codes_NL[:, level]] for level, centroid_KD in enumerate(centroids))


@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=60))
def test_row_ids_number_distinct_rows_in_lexical_order(rows: list[list[int]]) -> None:
    expected = {row: index for index, row in enumerate(sorted(set(map(tuple, rows))))}
    assert row_ids(np.array(rows)).tolist() == [expected[tuple(row)] for row in rows]


def test_row_ids_of_wide_rows_do_not_overflow() -> None:
    rows = np.random.default_rng(0).integers(0, 1 << 20, size=(500, 8))
    assert len(np.unique(row_ids(np.concatenate([rows, rows])))) == 500


def test_suffix_numbers_the_items_behind_a_tuple() -> None:
    codes = np.array([[1, 2], [0, 0], [1, 2], [3, 3], [1, 2], [0, 0]])
    unique, sizes = resolve_collisions(codes, (4, 4), np.zeros((6, 1)), [], "suffix")
    assert unique.tolist() == [[1, 2, 0], [0, 0, 0], [1, 2, 1], [3, 3, 0], [1, 2, 2], [0, 0, 1]]
    assert sizes == (4, 4, 3)


def test_share_leaves_the_codes_as_they_are() -> None:
    codes, latents, centroids = world(2, 30, (3, 4))
    shared, sizes = resolve_collisions(codes, (3, 4), latents, centroids, "share")
    assert np.array_equal(shared, codes) and shared is not codes and sizes == (3, 4)
    report = table_report(codes, shared, sizes, latents, centroids)
    assert report["collision_rate_after"] == report["collision_rate_before"] == collision_rate(codes) > 0
    assert report["moved_items"] == 0 and report["mse_after_policy"] == report["mse"]


def test_nearest_keeps_the_closest_and_moves_the_other_by_the_least_added_error() -> None:
    # One level, centroids at 0, 1, 5 and -2. The items at .1 and .4 share code 0; .1 keeps it, .4 goes to 1.
    centroids = [np.array([[0.0], [1.0], [5.0], [-2.0]], dtype=np.float32)]
    latents = np.array([[0.4], [0.1], [5.0]], dtype=np.float32)
    unique, sizes = resolve_collisions(np.array([[0], [0], [2]]), (4,), latents, centroids, "nearest")
    assert unique.tolist() == [[1], [0], [2]] and sizes == (4,)


def test_nearest_goes_up_a_level_only_where_the_last_is_full() -> None:
    first = np.array([[0.0], [10.0], [100.0]], dtype=np.float32)
    last = np.array([[0.0], [1.0]], dtype=np.float32)
    latents = np.array([[0.0], [1.0], [0.6], [110.0]], dtype=np.float32)
    codes = np.array([[0, 0], [0, 1], [0, 1], [2, 1]])
    unique, _ = resolve_collisions(codes, (3, 2), latents, [first, last], "nearest")
    # Item 2 finds both tuples of prefix 0 taken, goes to prefix 1 (10 is nearer than 100) and there to 0.
    assert unique.tolist() == [[0, 0], [0, 1], [1, 0], [2, 1]]


def test_an_item_leaves_no_prefix_that_has_room() -> None:
    wide, half, last = ([[0.0], [100.0]], [[0.0], [10.0]], [[0.0], [1.0]])
    centroids = [np.array(level, dtype=np.float32) for level in (wide, half, last)]
    codes = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 1]])
    latents = np.array([[0.0], [1.0], [100.0]], dtype=np.float32)
    unique, _ = resolve_collisions(codes, (2, 2, 2), latents, centroids, "nearest")
    assert unique.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 1]], "prefix 0 has room, however near 100 lies"


def test_equal_items_keep_their_order() -> None:
    centroids = [np.array([[0.0], [1.0], [2.0]], dtype=np.float32)]
    unique, _ = resolve_collisions(np.zeros((3, 1), int), (3,), np.zeros((3, 1)), centroids, "nearest")
    assert unique[0, 0] == 0 and sorted(unique[:, 0]) == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(5,), (3, 4), (2, 3, 4), (4, 1, 3, 2)]), st.floats(0.2, 1.0))
def test_nearest_gives_unique_codes_and_moves_only_losers(seed: int, sizes: tuple[int, ...], fill: float) -> None:
    items = max(1, int(fill * math.prod(sizes)))
    codes, latents, centroids = world(seed, items, sizes)
    unique, after = resolve_collisions(codes, sizes, latents, centroids, "nearest")
    again, _ = resolve_collisions(codes, sizes, latents, centroids, "nearest")
    assert np.array_equal(unique, again)
    assert after == sizes and len(np.unique(unique, axis=0)) == items
    assert (unique >= 0).all() and (unique < np.array(sizes)).all()
    error = np.square(latents.astype(float) - reconstruction(codes, centroids)).sum(1)
    for sid in set(map(tuple, codes.tolist())):
        group = np.flatnonzero((codes == sid).all(axis=1))
        stays = [item for item in group if tuple(unique[item]) == sid]
        assert stays == [group[np.argmin(error[group])]], "the closest one, and nobody else, keeps the tuple"


@pytest.mark.parametrize("seed", range(8))
def test_within_a_prefix_the_movers_error_is_the_least_possible(seed: int) -> None:
    size = 5
    codes, latents, centroids = world(seed, 4, (2, size))
    codes[:] = [0, 1]
    unique, _ = resolve_collisions(codes, (2, size), latents, centroids, "nearest")
    movers = np.flatnonzero(unique[:, 1] != 1)

    def error(last_codes: tuple[int, ...]) -> float:
        tuples = np.stack([np.zeros(3, int), np.array(last_codes)], axis=1)
        return float(np.square(latents[movers] - reconstruction(tuples, centroids)).sum())

    free = [code for code in range(size) if code != 1]
    best = min(itertools.permutations(free, 3), key=error)
    assert error(tuple(unique[movers, 1])) == pytest.approx(error(best))


def test_a_full_index_is_filled_to_the_last_tuple_and_no_further() -> None:
    sizes = (3, 2, 4)
    codes, latents, centroids = world(1, 24, sizes)
    codes[:] = 0
    unique, _ = resolve_collisions(codes, sizes, latents, centroids, "nearest")
    assert len(np.unique(unique, axis=0)) == 24
    codes, latents, centroids = world(1, 25, sizes)
    with pytest.raises(ValueError, match="25 items do not fit into 24"):
        resolve_collisions(codes, sizes, latents, centroids, "nearest")


def test_policies_that_cannot_be_are_refused() -> None:
    codes, latents, centroids = world(0, 4, (2,) * 8)
    with pytest.raises(ValueError, match="no letter"):
        resolve_collisions(codes, (2,) * 8, latents, centroids, "suffix")
    with pytest.raises(ValueError, match="suffix, nearest"):
        resolve_collisions(codes, (2,) * 8, latents, centroids, "hash")


def test_collision_rate_counts_the_items_that_give_way() -> None:
    assert collision_rate(np.array([[0, 1], [0, 1], [0, 1], [2, 2]])) == 0.5
    assert collision_rate(np.array([[0, 1], [1, 0]])) == 0.0


def test_level_report_by_hand() -> None:
    codes = np.array([[0, 0], [0, 0], [1, 0], [1, 1]])
    centroids = [np.array([[1.0], [3.0], [9.0], [9.0]]), np.array([[0.0], [1.0]])]
    report = level_report(codes, (4, 2), np.array([[1.0], [2.0], [3.0], [4.0]]), centroids)
    assert report["a/utilisation"] == 0.5 and report["b/utilisation"] == 1.0
    assert report["a/perplexity"] == pytest.approx(2.0)
    assert report["b/perplexity"] == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert report["a/mse"] == pytest.approx(0.5) and report["b/mse"] == pytest.approx(0.25)
    assert report["a/collision_rate"] == 0.5 and report["b/collision_rate"] == 0.25


def test_table_report_tells_what_the_policy_did() -> None:
    codes = np.array([[0], [0], [1]])
    centroids = [np.array([[0.0], [5.0], [2.0]], dtype=np.float32)]
    latents = np.array([[0.0], [1.0], [5.0]], dtype=np.float32)
    unique, sizes = resolve_collisions(codes, (3,), latents, centroids, "nearest")
    report = table_report(codes, unique, sizes, latents, centroids)
    assert (report["collision_rate_before"], report["collision_rate_after"]) == (pytest.approx(1 / 3), 0.0)
    assert report["moved_items"] == 1 and report["items"] == 3 and report["codes"] == 3
    assert report["mse"] == pytest.approx(1 / 3) and report["mse_after_policy"] == pytest.approx(1 / 3)
    unique, sizes = resolve_collisions(codes, (3,), latents, centroids, "suffix")
    report = table_report(codes, unique, sizes, latents, centroids)
    assert report["b/utilisation"] == 1.0 and "b/mse" not in report and report["moved_items"] == 0
    assert report["collision_rate_before"] > 0 and report["collision_rate_after"] == 0.0
