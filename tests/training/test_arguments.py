from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch
import yaml

from recllm.training import arguments
from recllm.training.arguments import hardware_defaults, parse


@dataclass
class Job:
    dataset: str = field(metadata={"help": "Folder of the data set."})
    epochs: int = field(default=20, metadata={"help": "Most epochs."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Step size."})
    exclude_seen: bool = field(default=True, metadata={"help": "Leave seen items out."})
    half: Literal["A", "B"] = field(default="A", metadata={"help": "Half of the users."})
    ks: list[int] = field(default_factory=lambda: [5, 10], metadata={"help": "Cut-offs."})
    retriever: str | None = field(default=None, metadata={"help": "Folder of the retriever."})


@dataclass
class TrainerLike:
    """The part of a trainer's configuration that depends on the machine."""

    bf16: bool | None = field(default=None, metadata={"help": "Half precision."})
    use_cpu: bool = field(default=False, metadata={"help": "Stay on the CPU."})
    gradient_checkpointing: bool = field(default=True, metadata={"help": "Recompute activations."})
    report_to: str = field(default="all", metadata={"help": "Trackers."})


def write(folder: Path, values) -> str:
    path = folder / "run.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def refused(capsys, *kinds, **named) -> str:
    """What `parse` says when it stops with status 2."""
    with pytest.raises(SystemExit) as stop:
        parse(*kinds, **named)
    assert stop.value.code == 2
    return capsys.readouterr().err


VALUES = {
    "dataset": "some/folder",
    "epochs": 3,
    "learning_rate": 2e-4,
    "exclude_seen": False,
    "half": "B",
    "ks": [1, 20],
    "retriever": "elsewhere",
}


def test_a_file_and_the_command_line_give_the_same(tmp_path):
    argv = ["--dataset", "some/folder", "--epochs", "3", "--learning_rate", "2e-4", "--exclude_seen", "false"]
    argv += ["--half", "B", "--ks", "1", "20", "--retriever", "elsewhere"]
    (told,) = parse(Job, argv=argv)
    (read,) = parse(Job, argv=["--config", write(tmp_path, VALUES)])
    assert told == read == Job(**VALUES)
    (dashed,) = parse(Job, argv=["--dataset=some/folder", "--learning-rate", "2e-4", "--epochs=3"])
    assert (dashed.learning_rate, dashed.epochs, dashed.dataset) == (2e-4, 3, "some/folder")


def test_the_command_line_wins_and_defaults_fill_the_rest(tmp_path):
    path = write(tmp_path, {"dataset": "a", "epochs": 7})
    for argv in (["--config", path, "--epochs", "9"], ["--epochs", "9", "--config", path]):
        (job,) = parse(Job, argv=argv)
        assert job == Job(dataset="a", epochs=9)


def test_the_default_config_is_read_only_where_none_is_given(tmp_path):
    default = tmp_path / "default.yaml"
    default.write_text("dataset: d\nepochs: 1\n")
    assert parse(Job, argv=[], default_config=default) == (Job("d", 1),)
    assert parse(Job, argv=["--epochs", "2"], default_config=default) == (Job("d", 2),)
    given = write(tmp_path, {"dataset": "g"})
    assert parse(Job, argv=["--config", given], default_config=default) == (Job("g"),)


def test_the_config_may_be_given_with_an_equals_sign(tmp_path):
    default = tmp_path / "default.yaml"
    default.write_text("dataset: d\nepochs: 1\n")
    path = write(tmp_path, {"dataset": "g"})
    assert parse(Job, argv=[f"--config={path}"], default_config=default) == (Job("g"),)


def test_yaml_numbers_that_yaml_reads_as_text(tmp_path):
    (job,) = parse(Job, argv=["--config", write(tmp_path, "dataset: d\nlearning_rate: 1e-5\n")])
    assert job.learning_rate == 1e-5 and isinstance(job.learning_rate, float)


def test_an_unknown_key_names_the_nearest_known_one(tmp_path, capsys):
    said = refused(capsys, Job, argv=["--dataset", "d", "--epoch", "3"])
    assert "unknown key --epoch in the command line; did you mean --epochs?" in said
    path = write(tmp_path, {"dataset": "d", "learning_rat": 1.0})
    said = refused(capsys, Job, argv=["--config", path])
    assert f"unknown key learning_rat in {path}; did you mean learning_rate?" in said
    said = refused(capsys, Job, argv=["--dataset", "d", "--qqqq", "3"])
    assert "unknown key --qqqq in the command line; see --help" in said
    assert "unknown key env" in refused(capsys, Job, argv=["--config", write(tmp_path, {"env": {"A": "b"}})])


@pytest.mark.parametrize(
    ("key", "value"),
    [("epochs", "many"), ("epochs", 2.5), ("half", "C"), ("exclude_seen", "perhaps"), ("ks", ["x"])],
)
def test_a_value_of_the_wrong_kind_is_refused_in_both(tmp_path, capsys, key, value):
    words = [str(part) for part in (value if isinstance(value, list) else [value])]
    assert key in refused(capsys, Job, argv=["--dataset", "d", f"--{key}", *words])
    assert key in refused(capsys, Job, argv=["--config", write(tmp_path, {"dataset": "d", key: value})])


def test_a_missing_value_or_file_is_named(tmp_path, capsys):
    assert "--dataset" in refused(capsys, Job, argv=[])
    assert "nowhere.yaml: no such file" in refused(capsys, Job, argv=["--config", "nowhere.yaml"])
    assert "needs the path" in refused(capsys, Job, argv=["--config"])
    assert "not valid YAML" in refused(capsys, Job, argv=["--config", write(tmp_path, "a: [1")])
    assert "must hold a mapping" in refused(capsys, Job, argv=["--config", write(tmp_path, "- a\n")])


def test_help_shows_every_key_its_help_and_its_default(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(Job, argv=["--help"], default_config=tmp_path / "missing.yaml")
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for name in VALUES:
        assert f"--{name}" in said
    assert "Most epochs. (default: 20)" in said


def machine(monkeypatch, accelerator: bool, cuda: bool = False, bf16: bool = False) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)


KNOWN = {"bf16", "use_cpu", "gradient_checkpointing", "report_to", "epochs"}


@pytest.mark.parametrize(
    ("hardware", "bf16", "use_cpu"),
    [
        ((False,), False, True),
        ((True, True, True), True, False),
        ((True, True, False), False, False),
        ((True,), True, False),
    ],
    ids=["cpu", "new gpu", "old gpu", "other accelerator"],
)
def test_precision_and_device_follow_the_hardware(monkeypatch, hardware, bf16, use_cpu):
    machine(monkeypatch, *hardware)
    expected = {"use_cpu": use_cpu, "bf16": bf16, "gradient_checkpointing": not use_cpu, "report_to": "none"}
    assert hardware_defaults(KNOWN) == expected
    assert hardware_defaults({"bf16"}) == {"bf16": bf16}, "only what the recipe knows"
    monkeypatch.setattr(arguments, "_trl_type", lambda name: {"TrainerLike": TrainerLike}[name])
    job, trainer = parse(Job, "TrainerLike", argv=["--dataset", "d"])
    assert job == Job("d") and trainer == TrainerLike(**expected)


def test_what_the_user_says_about_the_hardware_wins(monkeypatch, tmp_path):
    machine(monkeypatch, True, True, True)
    monkeypatch.setattr(arguments, "_trl_type", lambda name: TrainerLike)
    argv = ["--dataset", "d", "--bf16", "false", "--use_cpu", "true", "--report_to", "tensorboard"]
    _, trainer = parse(Job, "TrainerLike", argv=argv)
    assert (trainer.bf16, trainer.use_cpu, trainer.report_to) == (False, True, "tensorboard")
    path = write(tmp_path, {"dataset": "d", "bf16": False, "use_cpu": True})
    _, trainer = parse(Job, "TrainerLike", argv=["--config", path])
    assert (trainer.bf16, trainer.use_cpu, trainer.report_to) == (False, True, "none")
    (plain,) = parse(TrainerLike, argv=[])
    assert plain == TrainerLike(), "a dataclass of ours is left alone"
