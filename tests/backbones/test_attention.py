import math

import pytest
import torch

from recllm.backbones.attention import (
    NUM_TIME_BUCKETS,
    RelativePositionBias,
    RelativeTimeBias,
    parse_position,
    pool,
    rotate,
    time_buckets,
)


def test_time_buckets_are_the_naive_loops():
    generator = torch.Generator().manual_seed(0)
    gaps = torch.cat([torch.randint(0, high, (40,), generator=generator) for high in (3, 100, 10**5, 10**9)])
    time_1T = (1_400_000_000 + gaps.cumsum(0))[None]
    bucket_TT = time_buckets(time_1T)[0]
    assert bucket_TT.shape == (160, 160)
    found = set()
    for i in range(0, 160, 3):
        for j in range(0, 160, 5):
            gap = abs(int(time_1T[0, i]) - int(time_1T[0, j]))
            expected = min(int(math.log(max(gap, 1)) / 0.301), NUM_TIME_BUCKETS - 1)
            assert bucket_TT[i, j] == expected, gap
            found.add(expected)
    assert len(found) > 30


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0, 0), (1, 0), (2, 2), (3, 3), (60, 13), (3600, 27), (86_400, 37), (10**9, 68)]
)
def test_time_buckets_by_hand(seconds, bucket):
    """ln 2 / 0.301 = 2.30, ln 3 = 3.65, a minute 13.6, an hour 27.2, a day 37.8, 32 years 68.8."""
    assert time_buckets(torch.tensor([[5, 5 + seconds]]))[0].tolist() == [[0, bucket], [bucket, 0]]


def test_biases_look_their_distance_up():
    bias = RelativePositionBias(2, 5)
    with torch.no_grad():
        bias.weight.copy_(torch.arange(10.0).view(2, 5))
    bias_HTT = bias(4)
    for head in range(2):
        for i in range(4):
            for j in range(i + 1):
                assert bias_HTT[head, i, j] == 5 * head + i - j
    times = RelativeTimeBias()
    with torch.no_grad():
        times.weight.copy_(torch.arange(float(NUM_TIME_BUCKETS)))
    bucket_BTT = torch.tensor([[[0, 7], [7, 0]]])
    assert times(bucket_BTT).tolist() == [[[0.0, 7.0], [7.0, 0.0]]]


def test_rotation_keeps_lengths_and_shows_distances_only():
    torch.manual_seed(0)
    query_D, key_D = torch.randn(6), torch.randn(6)
    query_TD, key_TD = (rotate(x_D.expand(1, 1, 9, 6))[0, 0] for x_D in (query_D, key_D))
    torch.testing.assert_close(query_TD.norm(dim=1), query_D.norm().expand(9))
    torch.testing.assert_close(query_TD[0], query_D, msg="place 0 is not turned")
    product_TT = query_TD @ key_TD.T
    for distance in range(-8, 9):
        diagonal = product_TT.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    assert len({round(float(product_TT[4, j]), 3) for j in range(9)}) == 9, "each distance has its own product"
    angle = 3 * 10000 ** (-1 / 3)  # place 3, second of three pairs
    expected = query_D[1] * math.cos(angle) - query_D[4] * math.sin(angle)
    assert float(query_TD[3, 1]) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("pooling", "k"), [("last", 1), ("mean", 99), ("last_k_mean", 1), ("last_k_mean", 3)])
def test_pooling_is_the_mean_of_the_states_before(pooling, k):
    state_BTD = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0))
    pooled_BTD = pool(state_BTD, pooling, k)
    for place in range(7):
        expected = state_BTD[:, max(place + 1 - k, 0) : place + 1].mean(1)
        torch.testing.assert_close(pooled_BTD[:, place], expected)


def test_positions_are_parts():
    assert parse_position("rope+learned") == {"rope", "learned"}
    assert parse_position("none") == frozenset()
