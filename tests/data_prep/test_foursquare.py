"""The script on small files of both layouts, on the real sets where they are, and its configs; backbones can learn."""

import datetime
import json
import runpy

import numpy as np
import pytest

from recllm.data.checkins import Visits
from recllm.data.splits import load_split
from recllm.provenance import load_run
from recllm.training.arguments import parse

KINDS = [("Deli / Bodega", "Food"), ("Bar", "Nightlife Spot"), ("Home (private)", "Residence"), ("Park", "Outdoors")]
VENUES = [(f"{place}", f"40.{place}", "-73.9", *kind, "-1", "7.5") for place, kind in enumerate(KINDS)]


@pytest.fixture(scope="module")
def script(repo_root):
    return runpy.run_path(str(repo_root / "data_prep" / "foursquare.py"))


@pytest.fixture
def nyc(tmp_path):
    """Three users, who go home after each of nine visits."""
    folder = tmp_path / "data" / "foursquare_nyc"
    folder.mkdir(parents=True)
    rows = ["poi_id\tlat\tlon\tcategory\troot_category\tprice\trating", *("\t".join(venue) for venue in VENUES)]
    (folder / "venues.tsv").write_text("\n".join(rows) + "\n")
    rows = ["user_id\tpoi_id\tlocal_time\tweather"]
    for user in range(3):
        for day in range(9):
            rows += [f"{user}\t{(user + day) % 2}\t2012-05-{day + 1:02} 12:00:00\tRain"]
            rows += [f"{user}\t2\t2012-05-{day + 1:02} 20:00:00\tRain"]
    (folder / "checkins.tsv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def sample(tmp_path):
    """Ten sessions, two a week, of two visits and a way home."""
    rows = ["tid,lat_lon,date_time,time,rating,price,weather,day,root_type,type"]
    for tid in range(10):
        for step, place in enumerate((0, 1, 2)):
            _, lat, lon, leaf, root, price, rating = VENUES[place]
            stamp = datetime.datetime(2012, 5, 7, 12) + datetime.timedelta(days=7 * (tid // 2) + step)
            rows.append(f"{tid},{lat} {lon},{stamp},0,{rating},{price},Snow,Monday,{root},{leaf}")
    (tmp_path / "Foursquare_Sample.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_users_end_with_their_last_visits(script, nyc, tmp_path):
    args = script["Arguments"](str(tmp_path / "out"), source="nyc", data=str(nyc.parent), targets=2)
    script["main"](args)
    out = tmp_path / "out"
    known, metrics = (json.loads((out / name).read_text()) for name in ("dataset.json", "metrics.json"))
    assert (metrics["users"], metrics["items"], metrics["events"], metrics["context_events"]) == (3, 3, 54, 27)
    assert (metrics["fit_targets"], metrics["validation_targets"], metrics["test_targets"]) == (15, 6, 6)
    assert (known["name"], known["split"], known["time"]) == ("foursquare_nyc", "folds", "seconds")
    assert known["folds"] == {"by": "last", "targets": 2} and "research" in known["licence"]
    visits, split = Visits.load(out), load_split(out)
    # The way home after the last fitted visit is fitted, too; the one after a target is that target's fold's.
    assert visits.frame["fold"].to_list() == 3 * (10 * ["fit"] + 4 * ["validation"] + 4 * ["test"])
    assert split.test.position_E.tolist() == 3 * [14, 16] and load_run(out)["recipe"] == "foursquare"
    stamp = (out / "visits.parquet").stat().st_mtime_ns
    script["main"](args)
    assert (out / "visits.parquet").stat().st_mtime_ns == stamp


def test_sessions_go_by_the_calendar_and_backbones_rank_their_first_visits(script, sample, tmp_path):
    import torch

    from recllm.backbones.batches import window_batches
    from recllm.backbones.fit import full_ranks
    from recllm.backbones.hstu import HSTU
    from recllm.backbones.sasrec import SASRec

    args = script["Arguments"](str(tmp_path / "out"), data=str(sample), validation_share=0.2, test_share=0.2)
    script["main"](args)
    known = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert known["folds"] == {"by": "calendar", "validation": 0.2, "test": 0.2}
    visits, split = Visits.load(tmp_path / "out"), load_split(tmp_path / "out")
    assert visits.frame["fold"].to_list() == 18 * ["fit"] + 6 * ["validation"] + 6 * ["test"]
    assert split.fit_length_U.tolist() == 6 * [3] + 4 * [0] and split.test.position_E.tolist() == [0, 1, 0, 1]
    rng = np.random.default_rng(0)
    batches = list(window_batches(split.fitting, split.fit_length_U, 4, 8, rng))
    # Every fitted event but the first of its window is learnt, and none of another fold.
    assert sum(int((target_BT > 0).sum()) for _, target_BT in batches) == 12
    torch.manual_seed(0)
    for model in (SASRec(3, max_len=4, hidden_dim=8), HSTU(3, max_len=4, hidden_dim=8)):
        rank_E = full_ranks(model.eval(), split.test, exclude_seen=False)
        assert rank_E.shape == (4,) and ((rank_E >= 0) & (rank_E < 3)).all(), "a first visit has no history"


def test_malformed_rows_are_kept_aside_or_stop_the_run(script, nyc, tmp_path):
    (nyc / "checkins.tsv").write_text((nyc / "checkins.tsv").read_text() + "torn\n")
    options = {"source": "nyc", "data": str(nyc), "targets": 2}
    with pytest.raises(ValueError, match=r"checkins\.tsv: 1 of 55 rows are malformed"):
        script["main"](script["Arguments"](str(tmp_path / "a"), **options))
    assert load_run(tmp_path / "a") is None
    script["main"](script["Arguments"](str(tmp_path / "b"), **options, max_bad_fraction=0.1))
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["quarantined"] == 1


def test_the_config_gives_the_150_users(script, repo_root, recllm_data, tmp_path):
    config = repo_root / "recipes" / "configs" / "foursquare" / "nyc.yaml"
    argv = ["--config", str(config), "--output_dir", str(tmp_path), "--data", str(recllm_data)]
    script["main"](*parse(script["Arguments"], argv=argv))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["users"], metrics["items"], metrics["events"], metrics["quarantined"]) == (150, 11_195, 52_148, 0)
    assert (metrics["fit_targets"], metrics["validation_targets"], metrics["test_targets"]) == (28_129, 1_500, 1_500)
    frame = Visits.load(tmp_path).frame
    assert frame["timestamp"].min() == 1333461744 and frame["weather"].n_unique() == 6


@pytest.mark.parametrize("name", ["nyc", "matdata"])
def test_configs_parse(script, repo_root, name):
    path = repo_root / "recipes" / "configs" / "foursquare" / f"{name}.yaml"
    (args,) = parse(script["Arguments"], argv=["--config", str(path)])
    assert args.source == name and args.targets == 10 and args.validation_share == args.test_share == 0.15
