"""The script on a small folder in the published layout, and its config."""

import json
import runpy

import pytest

from recllm.data.interactions import Sequences
from recllm.provenance import load_run
from recllm.training.arguments import parse


@pytest.fixture(scope="module")
def script(repo_root):
    return runpy.run_path(str(repo_root / "data_prep" / "kuairec.py"))


def test_published_files_end_as_a_data_set(script, tmp_path):
    folder = tmp_path / "data" / "kuairec" / "data"
    folder.mkdir(parents=True)
    header = "user_id,video_id,play_duration,video_duration,time,date,timestamp,watch_ratio\n"
    views = [(u, (u + i) % 9, 1000.5 + i, 2.0 if i < 6 else 0.5) for u in range(9) for i in range(8)]
    rows = [f"{u},{v},1,1,2020-07-05,20200705,{stamp},{ratio}\n" for u, v, stamp, ratio in views]
    (folder / "big_matrix.csv").write_text(header + "".join(rows))
    (folder / "item_categories.csv").write_text("video_id,feat\n" + "".join(f'{v},"[{v}, 2]"\n' for v in range(12)))
    script["main"](script["Arguments"](str(tmp_path / "out"), data=str(tmp_path / "data")))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["users"], metrics["items"], metrics["events"]) == (9, 9, 54)
    known = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (known["name"], known["min_watch_ratio"], known["time"]) == ("kuairec-big", 1.0, "seconds")
    assert len(Sequences.load(tmp_path / "out")) == 9
    assert load_run(tmp_path / "out")["recipe"] == "kuairec"


def test_the_config_parses(script, repo_root):
    path = repo_root / "recipes" / "configs" / "kuairec" / "big.yaml"
    (args,) = parse(script["Arguments"], argv=["--config", str(path)])
    assert args.split == "leave_one_out" and args.min_watch_ratio == 1.0
