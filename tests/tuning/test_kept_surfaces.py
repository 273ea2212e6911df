"""The measured surfaces in benchmarks/: whole, of the space as it is, and with what a contest needs."""

import math

import pytest

from recllm.tuning.spaces.backbones import surface_space
from recllm.tuning.trials.surface import Surface

DATASETS = ("amazon2014-beauty", "amazon2014-toy", "amazon2018-scientific")


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("backbone", ["sasrec", "hstu"])
def test_a_kept_surface_answers_for_every_configuration_of_its_space(repo_root, backbone, dataset):
    surface = Surface.load(repo_root / "benchmarks" / "surfaces" / f"{backbone}-{dataset}.parquet")
    told = surface.provenance
    assert (told["backbone"], told["dataset"]) == (backbone, dataset) and 1200 < surface.data["users"] < 1500
    assert len(surface) == math.prod(len(axis.values) for axis in surface_space(backbone).axes) == 216
    assert (surface.frame["status"] == "ok").sum() >= 215
    assert surface.lookup(surface.space.default).exact
    for change in surface.space.neighbours(surface.best(1)[0]):
        assert surface.lookup(change).exact
    # three seeds of the default tell the noise
    assert len(told["default_by_seed"]) == 3 and surface.epsilon > 1e-4
    assert surface.target(0.02) == surface.lookup(surface.best(5)[-1]).outcome.score
