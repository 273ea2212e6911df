"""`--push_to_hub` on a training recipe: what arrives on the Hub, and that a push that cannot work is told first."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "hub"))
from fake_hub import TOKEN, FakeHub  # noqa: E402


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Folder with a tiny `model` and the `chats` to train it on."""
    from datasets import Dataset

    from recllm.training.chat import set_chat_template
    from recllm.training.tiny_lm import build_model, train_tokenizer

    folder = tmp_path_factory.mktemp("inputs")
    chat = [{"role": "user", "content": "saw drama comedy"}, {"role": "assistant", "content": "wants horror"}]
    tokenizer = train_tokenizer([message["content"] for message in chat], vocab_size=300)
    set_chat_template(tokenizer, "lean")
    tokenizer.save_pretrained(folder / "model")
    model = build_model(tokenizer, hidden_size=32, num_layers=1, num_heads=2, max_length=128, seed=0)
    model.save_pretrained(folder / "model")
    Dataset.from_list([{"messages": chat}] * 8).save_to_disk(folder / "chats")
    return folder


@pytest.fixture
def train(inputs, tmp_path):
    """Run recipes/sft.py in a child against a Hub at this address, without the Hub's Xet storage."""

    def run(endpoint: str) -> tuple[subprocess.CompletedProcess, Path]:
        folder = tmp_path / "run"
        config = ROOT / "recipes" / "configs" / "sft" / "smoke.yaml"
        command = [sys.executable, str(ROOT / "recipes" / "sft.py"), "--config", str(config)]
        command += ["--model_name_or_path", str(inputs / "model"), "--chats", str(inputs / "chats")]
        command += ["--output_dir", str(folder), "--per_device_train_batch_size", "2", "--max_length", "64"]
        # A checkpoint after each step shows whether training began, and must not be published.
        command += ["--save_strategy", "steps", "--save_steps", "1"]
        command += ["--push_to_hub", "true", "--hub_model_id", "me/tiny"]
        env = dict(os.environ, HF_ENDPOINT=endpoint, HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="1", NO_PROXY="127.0.0.1")
        env |= {"HF_HOME": str(tmp_path / "hf"), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=200), folder

    return run


def test_a_trained_model_arrives_whole_private_and_on_a_revision_of_its_own(train):
    with FakeHub(user="me") as hub:
        done, folder = train(hub.url)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert list(hub.repos) == ["models/me/tiny"] and hub.repos["models/me/tiny"].private
        record = json.loads((folder / "run.json").read_text())
        revision = f"run-{record['fingerprint'][:12]}"
        assert set(hub.repos["models/me/tiny"].branches) == {"main", revision}
        files = hub.files("models/me/tiny", revision)
    assert f"published: {hub.url}/me/tiny/tree/{revision}" in done.stdout
    assert {"README.md", "config.json", "metrics.json", "model.safetensors", "run.json", "tokenizer.json"} <= set(files)
    assert not [name for name in files if name.startswith((".", "checkpoint"))]
    for name, content in files.items():
        assert content == (folder / name).read_bytes(), name
    assert json.loads(files["metrics.json"])["steps"] == 2
    assert b"language model fine-tuned on chats" in files["README.md"]
    assert TOKEN not in done.stdout + done.stderr and TOKEN.encode() not in b"".join(files.values())


def test_a_hub_out_of_reach_is_told_before_training_starts(train):
    with FakeHub(user="me") as hub:
        nobody = hub.url
    done, folder = train(nobody)
    assert done.returncode != 0
    assert f"publishing to me/tiny at {nobody} cannot work" in done.stderr
    assert "publish the folder later with recipes/publish.py" in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    left = {path.name for path in folder.rglob("*")} if folder.exists() else set()
    assert left <= {".request.json"}, left  # no checkpoint, no weights, no record of a finished run
