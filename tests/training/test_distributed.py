"""recipes/sft.py under its launchers: two gloo ranks, ZeRO-2, ZeRO-3 and FSDP2 deliver what one plain process delivers.

A global batch is four rows of the same seeded order, however many ranks share it. A launched child runs this file as
a script: it plays several command lines of the recipe in one process, because importing TRL takes seconds, and notes
for each what accelerate really did.
"""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "sft.py"
CONFIGS = ROOT / "accelerate_configs"
GLOBAL_BATCH, STEPS = 4, 2
LORA = ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj", "--lora_dropout", "0"]
LORA += ["--learning_rate", "0.03"]
JOBS = {"full": [], "lora": LORA, "again": []}  # `again` is the second start of `full`

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="deepspeed is not installed: DS_BUILD_OPS=0 pip install --no-build-isolation -e .[deepspeed]",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Folder with `model` (two layers, 320 wide) and `chats` (16 rows of different lengths)."""
    from datasets import Dataset

    from recllm.training.chat import set_chat_template
    from recllm.training.tiny_lm import build_model, train_tokenizer

    folder = tmp_path_factory.mktemp("inputs")
    words = ["drama", "comedy", "action", "horror", "war", "western", "musical", "crime"]
    asked = [" ".join(["saw", *words[start:], *words[:start]][: 3 + start]) for start in range(8)]
    chats = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": " ".join(["wants", *words[row % 5 :]])}]
        for row, text in enumerate(asked * 2)
    ]
    tokenizer = train_tokenizer([message["content"] for chat in chats for message in chat], vocab_size=300)
    set_chat_template(tokenizer, "lean")
    # ZeRO-3 leaves tensors of fewer than 100,000 numbers whole; at this width only the norms stay below.
    model = build_model(tokenizer, hidden_size=320, num_layers=2, num_heads=2, max_length=128, seed=0)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    Dataset.from_list([{"messages": chat} for chat in chats]).save_to_disk(folder / "chats")
    return folder


def launch(launcher: list[str], inputs: Path, outputs: Path, ranks: int, jobs: dict[str, list[str]]) -> dict[str, list]:
    """Play `jobs` in one launch; returns for each what every rank noted. Job `again` shares the folder of `full`."""
    settings = {
        "model_name_or_path": str(inputs / "model"),
        "chats": str(inputs / "chats"),
        "max_steps": str(STEPS),
        "max_length": "64",
        "per_device_train_batch_size": str(GLOBAL_BATCH // ranks),
        "learning_rate": "3.0e-3",
        "logging_steps": "1",
        "save_strategy": "no",
        "use_cpu": "true",
        # Plain Adam divides rounding noise by itself where a gradient is near zero, and hides a gradient's scale.
        "adam_epsilon": "1.0e-3",
        "max_grad_norm": "100.0",
    }
    common = [word for name, value in settings.items() for word in (f"--{name}", value)]
    outputs.mkdir()
    lines = {}
    for name, extra in jobs.items():
        folder = outputs / ("full" if name == "again" else name)
        lines[name] = [*common, *extra, "--output_dir", str(folder)]
    (outputs / "lines.json").write_text(json.dumps(lines))
    env = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    command = [sys.executable, *launcher, __file__, str(outputs)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=outputs, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return {
        name: [json.loads((outputs / f"{name}-{rank}.json").read_text()) for rank in range(ranks)] for name in lines
    }


def accelerate(config: str, ranks: int) -> list[str]:
    """`accelerate launch` with a config of ours; bf16, which it sets for GPUs, is off."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / config), "--mixed_precision", "no"]
    return [*launcher, "--num_processes", str(ranks)]


def weights(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def check_equal(outputs: Path, plain: Path, job: str) -> None:
    """Weights, losses and steps of a job against the plain run; and the weights did move away from the start."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = outputs / job
    assert json.loads((folder / "run.json").read_text())["recipe"] == "sft"
    metrics, wanted = (json.loads((f / "metrics.json").read_text()) for f in (folder, plain / job))
    assert metrics["steps"] == STEPS
    for name in ("loss/first", "loss/last"):
        assert metrics[name] == pytest.approx(wanted[name], abs=1e-5)
    found, expected = weights(folder), weights(plain / job)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in found.items())
    assert not (folder / "adapter_config.json").exists() and not list(folder.glob("checkpoint-*"))


@pytest.fixture(scope="module")
def plain(inputs, tmp_path_factory):
    """Outputs of one process without a launcher."""
    outputs = tmp_path_factory.mktemp("plain") / "outputs"
    noted = launch([], inputs, outputs, 1, {"full": [], "lora": LORA})
    assert [note["kind"] for notes in noted.values() for note in notes] == ["NO", "NO"]
    return outputs


def test_the_plain_run_learns(inputs, plain):
    before = weights(inputs / "model")
    for job, moved in (("full", 1e-3), ("lora", 1e-4)):
        after = weights(plain / job)
        assert set(after) == set(before)
        assert max((after[name] - before[name]).abs().max() for name in before) > moved, job
        metrics = json.loads((plain / job / "metrics.json").read_text())
        assert metrics["loss/last"] < metrics["loss/first"]


def test_two_gloo_ranks_equal_one_process_with_twice_the_batch(inputs, plain, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local_addr", "127.0.0.1", "--nproc_per_node", "2"]
    noted = launch(torchrun, inputs, tmp_path / "outputs", 2, JOBS)
    for job in ("full", "lora"):
        assert [(note["kind"], note["ranks"]) for note in noted[job]] == [("MULTI_CPU", 2)] * 2
        assert [note["wrote_run"] for note in noted[job]] == [True, False]
        check_equal(tmp_path / "outputs", plain, job)
    # The second start of a complete run: both ranks leave it as it is, and neither writes.
    assert [note["wrote_run"] for note in noted["again"]] == [False, False]
    assert [note["folder"] for note in noted["again"]] == [noted["full"][0]["folder"]] * 2


@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_in_one_process_equals_the_plain_run(stage, inputs, plain, tmp_path):
    noted = launch(accelerate(f"zero{stage}.yaml", 1), inputs, tmp_path / "outputs", 1, {"full": [], "lora": LORA})
    for job, (note,) in noted.items():
        assert (note["kind"], note["stage"], note["sliced"]) == ("DEEPSPEED", stage, stage == 3)
        check_equal(tmp_path / "outputs", plain, job)


def test_fsdp2_under_two_gloo_ranks_equals_the_plain_run(inputs, plain, tmp_path):
    """accelerate leaves FSDP off where the ranks are CPUs (see fsdp2.yaml), so the child tells it otherwise."""
    noted = launch(accelerate("fsdp2.yaml", 2), inputs, tmp_path / "outputs", 2, {"full": [], "lora": LORA})
    for job, notes in noted.items():
        assert [(note["kind"], note["sliced"]) for note in notes] == [("FSDP", True)] * 2
        assert [note["wrote_run"] for note in notes] == [True, False]
        check_equal(tmp_path / "outputs", plain, job)


def child(outputs: Path) -> None:
    """In the launched process: play each command line as the recipe's own, and note what happened."""
    import accelerate.state
    from transformers import Trainer

    import recllm.provenance as provenance

    told: dict = {}
    train, finish, start_state = Trainer.train, provenance.RunRecord.finish, accelerate.state.PartialState.__init__

    def noting_train(self, *args, **named):
        outcome = train(self, *args, **named)
        accelerator = self.accelerator
        told["kind"] = accelerator.distributed_type.value
        told["ranks"] = accelerator.num_processes
        # FSDP2's slices are DTensors, those of ZeRO-3 leave an empty tensor behind.
        told["sliced"] = any(type(p).__name__ == "DTensor" or not p.numel() for p in self.model.parameters())
        plugin = accelerator.state.deepspeed_plugin if told["kind"] == "DEEPSPEED" else None
        told["stage"] = self.model_wrapped.zero_optimization_stage() if plugin else None
        return outcome

    def noting_finish(self, metrics):
        told["wrote_run"] = True
        return finish(self, metrics)

    def cpu_as_gpu(self, *args, **named):
        start_state(self, *args, **named)
        if os.environ.get("ACCELERATE_USE_FSDP") == "true" and self.distributed_type.value == "MULTI_CPU":
            self.distributed_type = accelerate.state.DistributedType.MULTI_GPU

    Trainer.train, provenance.RunRecord.finish = noting_train, noting_finish
    accelerate.state.PartialState.__init__ = cpu_as_gpu
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed

        # Its collective for CPU ranks is compiled on first use, which takes minutes; one process needs none.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    rank = int(os.environ.get("RANK", "0"))
    for name, line in json.loads((outputs / "lines.json").read_text()).items():
        told.clear()
        told["wrote_run"] = False
        sys.argv = [str(RECIPE), *line]
        runpy.run_path(str(RECIPE), run_name="__main__")
        folder = Path(line[line.index("--output_dir") + 1])
        told["folder"] = {path.name: path.stat().st_mtime_ns for path in sorted(folder.iterdir())}
        (outputs / f"{name}-{rank}.json").write_text(json.dumps(told))

    import torch.distributed

    if torch.distributed.is_initialized():
        # Gloo's threads abort a process that leaves while another still talks to it.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    child(Path(sys.argv[1]))
