"""A checkpoint is whole by its manifest or it is none; only whole ones count, and a save never costs an earlier one."""

import errno
import hashlib
import json
import logging
import os
import random
import re
import shutil
from pathlib import Path

import pytest

from recllm.training.safety import checkpoint
from recllm.training.safety.checkpoint import (
    MANIFEST,
    STAGING,
    Staging,
    disk_full,
    fault,
    newest_complete,
    newest_size,
    rotate,
    size_of,
)

FILES = {"model.safetensors": b"w" * 100, "inner/deep/shard.bin": b"s" * 50, "empty.txt": b""}


def save(folder: Path, step: int, files=None) -> Path:
    staging = Staging.open(folder, step)
    for name, content in (files or FILES).items():
        (staging.path / name).parent.mkdir(parents=True, exist_ok=True)
        (staging.path / name).write_bytes(content)
    final = staging.commit()
    staging.discard()
    return final


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_saved_checkpoint_is_whole_and_the_newest(tmp_path, caplog):
    assert newest_complete(tmp_path / "not there") is None and newest_complete(tmp_path) is None
    assert newest_size(tmp_path) is None
    for step in (9, 100, 20):
        final = save(tmp_path, step)
        assert final == tmp_path / f"checkpoint-{step}" and fault(final) is None
        assert {str(p.relative_to(final)): p.read_bytes() for p in final.rglob("*") if p.is_file()} == {
            **FILES, MANIFEST: (final / MANIFEST).read_bytes()
        }  # fmt: skip
    assert names(tmp_path) == ["checkpoint-100", "checkpoint-20", "checkpoint-9"], "no staging is left"
    assert newest_complete(tmp_path) == str(tmp_path / "checkpoint-100"), "by number: as text, 9 is the last"
    assert size_of(final) == newest_size(tmp_path) == 150
    assert not caplog.records


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "no manifest": (lambda c: (c / MANIFEST).unlink(), "it has no manifest.json"),
    "torn manifest": (lambda c: (c / MANIFEST).write_text((c / MANIFEST).read_text()[:40]), "cannot be read"),
    "other manifest": (lambda c: (c / MANIFEST).write_text("[1]"), "lacks files with size and sha256"),
    "file missing": (lambda c: (c / "inner/deep/shard.bin").unlink(), "inner/deep/shard.bin is missing"),
    "file cut": (lambda c: os.truncate(c / "model.safetensors", 99), "has 99 bytes and was written with 100"),
    "file grown": (lambda c: (c / "empty.txt").write_text("x"), "empty.txt has 1 bytes and was written with 0"),
    "bit flipped": (lambda c: flip(c / "model.safetensors"), "model.safetensors has another sha256"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_the_reason_told(tmp_path, caplog, damage):
    spoil, reason = DAMAGE[damage]
    for step in (8, 9, 10, 11):
        save(tmp_path, step)
    for step in (8, 10, 11):
        spoil(tmp_path / f"checkpoint-{step}")
    with caplog.at_level(logging.WARNING, logger="recllm"):
        assert newest_complete(tmp_path) == str(tmp_path / "checkpoint-9")
    told = [record.getMessage() for record in caplog.records]
    assert [re.search(r"checkpoint-(\d+)", line)[1] for line in told] == ["11", "10"], "8 is older and of no interest"
    assert all(reason in line for line in told), told
    if damage != "bit flipped":
        assert fault(tmp_path / "checkpoint-10", hashes=False)


def test_what_only_looks_like_a_checkpoint_is_none(tmp_path):
    save(tmp_path, 4)
    for name in ("checkpoint-best", "checkpoint-5-old", "checkpoints-best", "xcheckpoint-7"):
        shutil.copytree(tmp_path / "checkpoint-4", tmp_path / name)
    (tmp_path / "checkpoint-8").write_text("a file")
    assert newest_complete(tmp_path) == str(tmp_path / "checkpoint-4")


def test_leftover_staging_goes_but_not_one_in_use(tmp_path):
    save(tmp_path, 1)
    (tmp_path / STAGING / "checkpoint-2").mkdir(parents=True)
    (tmp_path / STAGING / "checkpoint-2" / "model.safetensors").write_bytes(b"half")
    assert newest_complete(tmp_path) == str(tmp_path / "checkpoint-1")
    assert names(tmp_path) == ["checkpoint-1"]
    staging = Staging.open(tmp_path, 3)
    (staging.path / "model.safetensors").write_bytes(b"half")
    assert newest_complete(tmp_path) == str(tmp_path / "checkpoint-1"), "somebody looks while a run saves"
    assert fault(staging.commit()) is None
    staging.discard()
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3"]


def test_a_save_begins_with_an_empty_folder_and_alone(tmp_path, monkeypatch):
    (tmp_path / STAGING / "checkpoint-2").mkdir(parents=True)
    (tmp_path / STAGING / "checkpoint-2" / "old.bin").write_bytes(b"of a killed run")
    (tmp_path / STAGING / "file").write_bytes(b"")
    staging = Staging.open(tmp_path, 2)
    assert names(staging.path) == [] and names(tmp_path / STAGING) == ["checkpoint-2"]
    monkeypatch.setattr(checkpoint, "_PATIENCE", 0.1)
    with pytest.raises(BlockingIOError, match="another run saves"):
        Staging.open(tmp_path, 3)
    staging.discard()
    assert names(tmp_path) == []
    Staging.open(tmp_path, 3).discard()


def test_a_torn_or_older_one_of_the_same_step_is_replaced(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "stale.bin").write_bytes(b"x")
    save(tmp_path, 5)
    assert not (tmp_path / "checkpoint-5" / "stale.bin").exists()
    save(tmp_path, 5, {"model.safetensors": b"new"})
    assert (tmp_path / "checkpoint-5" / "model.safetensors").read_bytes() == b"new"
    assert newest_complete(tmp_path) == str(tmp_path / "checkpoint-5") and names(tmp_path) == ["checkpoint-5"]


def test_everything_is_on_disk_before_the_rename_and_the_name_after_it(tmp_path, monkeypatch):
    order, fsync, rename = [], os.fsync, Path.rename

    def noting_fsync(handle):
        known = {path.stat().st_ino: path for path in [tmp_path, *tmp_path.rglob("*")]}
        order.append(known[os.fstat(handle).st_ino].relative_to(tmp_path).as_posix())
        fsync(handle)

    def noting_rename(self, target):
        order.append(f"rename {self.name}")
        return rename(self, target)

    monkeypatch.setattr(checkpoint.os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "rename", noting_rename)
    save(tmp_path, 3)
    staged = f"{STAGING}/checkpoint-3"
    written, after = order[: order.index("rename checkpoint-3")], order[order.index("rename checkpoint-3") + 1 :]
    content = {f"{staged}/{name}" for name in FILES}
    assert set(written[:3]) == content
    assert written[3] == f"{staged}/{MANIFEST}", "the manifest comes after every file that it names"
    assert set(written[4:]) == {staged, f"{staged}/inner", f"{staged}/inner/deep"}
    assert after[0] == "."


def brute_rotation(steps: dict[int, bool], limit: int, keep: set[int]) -> set[int]:
    whole = [step for step in sorted(steps) if steps[step]]
    return {step for step in steps if not steps[step] or step in keep or step in whole[max(0, len(whole) - limit) :]}


def test_rotation_against_brute_force(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.os, "fsync", lambda handle: None)  # slow, and nothing here loses its power
    generator = random.Random(0)
    for trial in range(40):
        folder = tmp_path / str(trial)
        steps = {generator.randrange(1, 200): generator.random() < 0.6 for _ in range(generator.randrange(1, 9))}
        for step, whole in steps.items():
            save(folder, step)
            if not whole:
                generator.choice(list(DAMAGE.values()))[0](folder / f"checkpoint-{step}")
        (folder / "checkpoints-best").mkdir()
        limit = generator.randrange(0, 4)
        keep = {step for step in steps if generator.random() < 0.2}
        rotate(folder, limit or None, [folder / f"checkpoint-{step}" for step in keep])
        left = {int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")}
        assert left == (brute_rotation(steps, limit, keep) if limit else set(steps)), (trial, steps, limit, keep)
        assert any(steps.values()) == any(steps[step] for step in left), "the last whole one never goes"
        assert (folder / "checkpoints-best").is_dir()
        newest_complete(folder)
        assert not (folder / STAGING).exists()


def test_trusted_checkpoints_are_not_hashed_again(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        save(tmp_path, step)
    hashed, true_hash = set(), checkpoint.sha256_file

    def noting(path):
        hashed.add(path.relative_to(tmp_path).parts[0])
        return true_hash(path)

    monkeypatch.setattr(checkpoint, "sha256_file", noting)
    rotate(tmp_path, 2, trusted={"checkpoint-1", "checkpoint-3"})
    assert hashed == {"checkpoint-2"}
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disks_are_known_by_number_and_through_what_follows(number):
    assert disk_full(OSError(number, os.strerror(number)))
    try:
        try:
            raise OSError(number, "x")
        except OSError as error:
            raise RuntimeError("while saving") from error
    except RuntimeError as error:
        assert disk_full(error)


def test_other_errors_are_no_full_disk():
    for error in (None, OSError(errno.EACCES, "no"), PermissionError("x"), ValueError("size"), RuntimeError("nan")):
        assert not disk_full(error)


def test_the_manifest_is_plain_json(tmp_path):
    known = json.loads((save(tmp_path, 2) / MANIFEST).read_text())
    assert known["files"]["model.safetensors"] == {
        "size": 100,
        "sha256": hashlib.sha256(FILES["model.safetensors"]).hexdigest(),
    }
