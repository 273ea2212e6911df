"""Clusters within categories on blobs, and what is joined across them."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from recllm.needs.clusters import NOISE, ClusterOptions, cluster, joined, profiles


def blobs(seed=0):
    """Two categories of two tight blobs of 60 each, with three lone points."""
    rng = np.random.default_rng(seed)
    centre_B2 = np.array([(0.0, 0.0), (5.0, 0.0)])
    blob_E = np.tile(np.repeat([0, 1], 60), 2)
    point_E2 = centre_B2[blob_E] + rng.normal(0, 0.1, (240, 2))
    category_E = np.repeat([0, 1], 120)
    lone_X2 = np.array([(2.5, 9.0), (2.5, -9.0), (20.0, 3.0)])
    return np.concatenate([point_E2, lone_X2]), np.append(category_E, [0, 0, 0]), np.append(blob_E, [-1, -1, -1])


def test_density_finds_the_blobs_of_each_category_and_the_lone_points():
    feature_EF, category_E, blob_E = blobs()
    label_E = cluster(feature_EF, category_E, ClusterOptions(share=0.3))
    assert (label_E[-3:] == NOISE).all()
    inside = label_E != NOISE
    assert inside.sum() > 200
    assert adjusted_rand_score((2 * category_E + blob_E)[inside], label_E[inside]) == 1
    assert sorted(set(label_E[inside])) == [0, 1, 2, 3], "numbers have no holes, and none is of two categories"


def test_k_means_starts_the_farthest_share_as_noise():
    feature_EF, category_E, _ = blobs()
    label_E = cluster(feature_EF, category_E, ClusterOptions(method="kmeans", per_cluster=40, outliers=0.05))
    for category in (0, 1):
        own = label_E[category_E == category]
        assert 0 < (own == NOISE).mean() < 0.07
    known = label_E != NOISE
    assert set(label_E[known]) == set(range(label_E.max() + 1))
    assert not set(label_E[known & (category_E == 0)]) & set(label_E[known & (category_E == 1)])


def test_a_category_with_few_visits_is_left_alone():
    feature_EF, _, _ = blobs()
    label_E = cluster(feature_EF[:40], np.append(np.zeros(29, dtype=int), np.ones(11, dtype=int)), ClusterOptions())
    assert (label_E == NOISE).all()


@pytest.mark.parametrize("wrong", [{"method": "dbscan"}, {"share": 0}, {"outliers": 1}, {"per_cluster": 0}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ClusterOptions(**wrong)


def test_clusters_of_like_circumstances_are_joined_across_categories():
    rng = np.random.default_rng(0)
    # Clusters 0 and 2 are noon at scene 0, 1 and 3 are evening at scene 1, and the last events have none.
    label_E = np.repeat([0, 1, 2, 3, NOISE], 50)
    noon_E = np.isin(label_E, (0, 2))
    contexts = SimpleNamespace(
        hour_M=np.where(noon_E, 12, 20) + rng.normal(0, 0.5, 250),
        scene_M=np.where(noon_E, 0, 1),
        day_M=rng.integers(3, size=250),
        scenes=("a", "b"),
        day_kinds=3,
    )
    profile_CX = profiles(contexts, np.arange(250), label_E)
    assert profile_CX.shape == (4, 24 + 2 + 3)
    np.testing.assert_allclose((profile_CX**2).sum(1), 3)
    need_E = joined(profile_CX, label_E, 2)
    assert (need_E[-50:] == NOISE).all()
    assert need_E[0] == need_E[100] != need_E[50] == need_E[150]
    np.testing.assert_array_equal(joined(profile_CX, label_E, 9), label_E)
