"""The process beside test_kills.py: runs a tiny GRPO training in children that it kills, or whose disk it fills.

`python kill_run.py FOLDER` plays the jobs of FOLDER/jobs.json and writes FOLDER/results.json. TRL is imported once,
and every run is a fork of the warm process, so that fifty kills cost fifty runs and not fifty imports. The parent stays
on one thread and runs no tensor operation before it forks.
"""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import sys
import time
from contextlib import closing
from pathlib import Path

from recllm.training.safety.checkpoint import STAGING, Staging, disk_full, fault, newest_complete, rotate

STEPS = 12
# A run must end before this many seconds, or something waits for ever.
LIMIT = 120


def fork(work, *arguments, log: Path | None = None) -> int:
    """The id of a child process, leader of its own group, that does `work` and ends."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    code = 1
    try:
        with Path(log or os.devnull).open("a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        work(*arguments)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, seconds: float) -> int | None:
    """The status a child exits with, or None where it is still running after `seconds`; a dead one gives -signal."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def kill(child: int) -> None:
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)


def variety(completions, **_):
    """Different characters of a completion: something that varies between any two."""
    return [float(len(set(text)) % 7) for text in completions]


def train(folder: Path, watch=(), rows: int = 4, **options) -> None:
    """One start of the run in `folder`, as a user would write it; its end is told in `done.json`."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from recllm.provenance import write_json
    from recllm.training.safety.resume import protect
    from recllm.training.tiny_lm import build_model, train_tokenizer

    tokenizer = train_tokenizer(["some words of a data set"], 270)
    args = GRPOConfig(
        output_dir=str(folder),
        **{"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True},
        **{"per_device_train_batch_size": 2, "num_generations": 2, "steps_per_generation": 4, "num_iterations": 2},
        **{"max_steps": STEPS, "max_completion_length": 6, "learning_rate": 1e-2, "logging_steps": 3, "seed": 3},
        **{"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, **options},
    )
    trainer = GRPOTrainer(
        model=build_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2, max_length=64, seed=0),
        reward_funcs=[variety],
        args=args,
        train_dataset=Dataset.from_list([{"prompt": f"number {row}"} for row in range(rows)]),
        processing_class=tokenizer,
        callbacks=list(watch),
    )
    protection = protect(trainer)
    trainer.train(resume_from_checkpoint=newest_complete(folder))
    digest = hashlib.sha256()
    for name, weight in trainer.model.state_dict().items():
        digest.update(name.encode() + weight.numpy().tobytes())
    told = {"weights": digest.hexdigest(), "steps": trainer.state.global_step, "failed": protection.failed_saves}
    write_json(folder / f"done-{trainer.accelerator.process_index}.json", told)


def done(folder: Path, rank: int = 0) -> dict:
    return json.loads((folder / f"done-{rank}.json").read_text())


def start(folder: Path, log: Path) -> tuple[int, float | None]:
    """A child that trains in `folder`, once it is about to take a step; and how long it took to come there.

    A run that has nothing left to do gives None.
    """
    begun = log.with_name("begun")
    begun.unlink(missing_ok=True)

    def work() -> None:
        from transformers import TrainerCallback

        class Begin(TrainerCallback):
            def on_step_begin(self, args, state, control, **named):
                begun.touch()

        train(folder, [Begin()])

    since = time.monotonic()
    child = fork(work, log=log)
    while not begun.exists():
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return child, None
        time.sleep(0.002)
    return child, time.monotonic() - since


def kills(home: Path, count: int, seed: int) -> dict:
    """Runs that are killed until `count` kills have landed, and what each run ended with.

    The times are random, one in each of `count` equal parts of an uninterrupted run's time from its first step on, and
    they count from the first step after a start or a restart. Where a run is over before, the next one is to be killed
    a bit earlier. Every tenth kill hits before the first step, in the imports and the loading.
    """
    generator, log = random.Random(seed), home / "log.txt"
    child, loading = start(home / "whole", log)
    since = time.monotonic()
    if wait(child, LIMIT) != 0:
        raise RuntimeError(f"the uninterrupted run failed: {log.read_text()[-3000:]}")
    lasts = time.monotonic() - since
    delays = [(part + generator.random()) / count * lasts for part in range(count)]
    generator.shuffle(delays)
    told = {"wanted": done(home / "whole"), "seconds": lasts, "ends": [], "in_save": 0, "at": []}
    while delays:
        folder = home / f"run-{len(told['ends'])}"
        while not (folder / "done-0.json").exists():
            if len(delays) % 10 == 9:
                child = fork(train, folder, log=log)
                status = wait(child, loading * generator.random())
            else:
                child, _ = start(folder, log)
                status = wait(child, delays[-1] if delays else LIMIT)
            if status is None:
                kill(child)
                delays.pop()
                told["in_save"] += (folder / STAGING).exists()
                told["at"].append(
                    max([int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")], default=0)
                )
            elif status != 0:
                raise RuntimeError(f"a resumed run ended with {status}: {log.read_text()[-3000:]}")
            elif delays:
                delays[-1] *= 0.9
        # A kill may also hit the writing of the note itself, after the run.
        left = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".done-"))
        told["ends"].append({**done(folder), "left": left})
        shutil.rmtree(folder)
    return told


def every_call(home: Path) -> dict:
    """Kills a save before its first, second, ... call of the file system, and looks at what is left each time.

    Python's audit events tell the calls: open, mkdir, rename, remove and their kin.
    """
    os.fsync = lambda handle: sys.audit("os.fsync", handle)  # counted as well
    told = {"points": 0, "wrong": [], "kept": 0, "new": 0}
    for point in range(1, 1000):
        folder = home / "calls"
        shutil.rmtree(folder, ignore_errors=True)
        for step in (8, 9):
            save(folder, step)
        (folder / "checkpoint-11").mkdir()  # torn, from before
        (folder / "checkpoint-10").mkdir()  # the same, where the new one is to lie
        child = fork(save_and_die, folder, point)
        status = wait(child, LIMIT)
        newest = newest_complete(folder)
        intact = newest is not None and fault(newest) is None
        whole = [p.name for p in folder.glob("checkpoint-*") if fault(p) is None]
        new = newest == str(folder / "checkpoint-10")
        if not intact or (folder / STAGING).exists() or not (new or {"checkpoint-8", "checkpoint-9"} <= set(whole)):
            told["wrong"].append([point, newest, sorted(whole)])
        there = folder / "checkpoint-10"
        if not new and there.exists() and any(there.iterdir()):
            told["wrong"].append([point, "half of a checkpoint under its name"])
        told["new" if new else "kept"] += 1
        save(folder, 10)  # the run goes on
        if sorted(p.name for p in folder.glob("checkpoint-*")) != ["checkpoint-10", "checkpoint-11", "checkpoint-9"]:
            told["wrong"].append([point, sorted(p.name for p in folder.iterdir())])
        if status == 0:
            return told
        told["points"] = point
    raise RuntimeError("the save came to no end")


def save(folder: Path, step: int) -> None:
    staging = Staging.open(folder, step)
    try:
        (staging.path / "inner").mkdir()
        for name in ("a.bin", "inner/b.bin"):
            (staging.path / name).write_bytes(name.encode() * step)
        final = staging.commit()
        rotate(folder, 2, keep=[final])
    finally:
        staging.discard()


def save_and_die(folder: Path, point: int) -> None:
    left = point

    def count(event: str, arguments: tuple) -> None:
        nonlocal left
        if event.startswith(("os.", "shutil.", "fcntl.")) or event == "open":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    save(folder, 10)


def limit_file_size(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails with EFBIG instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def what_writers_raise(home: Path, size: int) -> dict:
    """What each writer of a checkpoint raises when its file may not grow beyond `size` bytes."""
    import torch
    from safetensors.torch import save_file

    from recllm.training.tiny_lm import train_tokenizer

    def work() -> None:
        tokenizer, found = train_tokenizer(["some words of a data set"], 270), {}
        tensor = torch.zeros(1 << 20)
        writers = {
            "json": lambda: (home / "a.json").write_text("x" * (1 << 20)),
            "safetensors": lambda: save_file({"a": tensor}, home / "a.safetensors"),
            "torch": lambda: torch.save({"a": tensor}, home / "a.pt"),
            "tokenizer": lambda: tokenizer.save_pretrained(home / "tokenizer"),
        }
        limit_file_size(size)
        for name, write in writers.items():
            try:
                write()
                found[name] = ["nothing", "", False]
            except Exception as error:
                found[name] = [type(error).__name__, str(error)[:200], disk_full(error)]
        limit_file_size(resource.RLIM_INFINITY)
        (home / "raised.json").write_text(json.dumps(found))

    if wait(fork(work, log=home / "log.txt"), LIMIT) != 0:
        raise RuntimeError(f"the writers ended badly: {(home / 'log.txt').read_text()[-3000:]}")
    return json.loads((home / "raised.json").read_text())


def full_disk(home: Path, kind: str, disk: str | None) -> dict:
    """A run of which the saves at steps 4, 5 and 6 meet a full disk; what lay there after each step.

    `kind` is limit (of file sizes) or tmpfs, a small file system on `disk`.
    """
    folder = Path(disk or home) / kind
    # Bytes left: fails in a JSON file, in the weights or the tokenizer, in the optimizer's state.
    room = {3: 400, 4: 12_000, 5: 60_000}
    notes = home / f"{kind}.json"

    def work() -> None:
        from transformers import TrainerCallback

        ballast = folder / "ballast"

        class Fill(TrainerCallback):
            def on_save(self, args, state, control, **named):
                seen[state.global_step] = [
                    sorted(path.name for path in folder.iterdir() if path != ballast),
                    newest_complete(folder),
                ]
                left = room.get(state.global_step)
                if kind == "limit":
                    limit_file_size(resource.RLIM_INFINITY if left is None else left)
                else:
                    ballast.unlink(missing_ok=True)
                    if left is not None:
                        with ballast.open("wb") as stream:
                            stream.write(b"x" * (shutil.disk_usage(folder).free - left))

        seen: dict = {}
        train(folder, [Fill()])
        notes.write_text(json.dumps(seen))

    # A log in a file would meet the limit, too; warnings are read from a pipe that the parent keeps.
    reader, writer = os.pipe()
    child = fork(with_stderr, writer, work)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    status = wait(child, LIMIT)
    if status != 0:
        raise RuntimeError(f"the run on a full disk ended with {status}: {said[-3000:]}")
    warnings = [line for line in said.splitlines() if "NO CHECKPOINT" in line]
    return {"seen": json.loads(notes.read_text()), "warnings": warnings, **done(folder), "folder": str(folder)}


def with_stderr(handle: int, work) -> None:
    os.dup2(handle, 2)
    work()


def ranks(home: Path) -> dict:
    """Two gloo ranks: uninterrupted; killed in the middle of a buffer and resumed; rank 1's disk full for one save."""
    told = {}
    for name in ("whole", "cut", "full"):
        folder = home / name
        children = start_ranks(folder, home / "log.txt", full=name == "full")
        if name == "cut":
            while not (folder / "checkpoint-5").exists():
                if any(wait(child, 0.003) is not None for child in children):
                    raise RuntimeError(f"a rank ended early: {(home / 'log.txt').read_text()[-3000:]}")
            for child in children:
                kill(child)
            told["left"] = newest_complete(folder)
            children = start_ranks(folder, home / "log.txt")
        codes = [wait(child, LIMIT) for child in children]
        if codes != [0, 0]:
            raise RuntimeError(f"ranks ended with {codes}: {(home / 'log.txt').read_text()[-4000:]}")
        told[name] = [done(folder, rank) for rank in range(2)]
        told[f"{name} files"] = sorted(path.name for path in Path(newest_complete(folder)).iterdir())
    return told


def start_ranks(folder: Path, log: Path, full: bool = False) -> list[int]:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def work(rank: int) -> None:
        from transformers import TrainerCallback

        class Fill(TrainerCallback):
            def on_step_end(self, args, state, control, **named):
                limit_file_size(1000 if state.global_step == 3 else resource.RLIM_INFINITY)

        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        train(folder, [Fill()] if full and rank == 1 else [], rows=8)

    return [fork(work, rank, log=log.with_name(f"rank-{rank}.txt") if full else log) for rank in range(2)]


JOBS = {"kills": kills, "calls": every_call, "raised": what_writers_raise, "full": full_disk, "ranks": ranks}


def main(home: Path) -> None:
    jobs = json.loads((home / "jobs.json").read_text())
    if any(job["kind"] != "calls" for job in jobs.values()):
        import datasets  # noqa: F401
        import torch
        from trl import GRPOTrainer  # noqa: F401

        torch.set_num_threads(1)
    # The system outlives a killed process, and so does what is in its caches: to wait for the disk would only take
    # time. A bit of it stays, so that kills fall into the calls.
    os.fsync = lambda handle: time.sleep(0.001)
    results = {}
    for name, job in jobs.items():
        folder = home / name
        folder.mkdir()
        results[name] = JOBS[job["kind"]](folder, **job.get("options", {}))
    (home / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
