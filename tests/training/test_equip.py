"""What a recipe attaches to its trainer, attached to a trainer that a user built with TRL alone."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import ProgressCallback

from recllm.training.equip import equip
from recllm.training.safety.checkpoint import newest_complete
from recllm.training.safety.reward_guard import RewardError
from recllm.training.tiny_lm import train_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
_FILE = Path(__file__).parent / "prefix" / "packing_worlds.py"
worlds = SimpleNamespace(**runpy.run_path(str(_FILE), run_name="packing_worlds"))


def reward(completion_ids, **columns):
    return [float(sum(ids) % 7) for ids in completion_ids]


def make_trainer(folder, config=None, **changes):
    import trl
    from datasets import Dataset

    tokenizer = train_tokenizer(["a"], vocab_size=256)
    model = worlds.make_model("qwen3")
    model.resize_token_embeddings(len(tokenizer))
    settings = {
        **{"output_dir": str(folder), "per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 4},
        **{"max_completion_length": 5, "learning_rate": 1e-2, "use_cpu": True, "bf16": False, "logging_steps": 1},
        **{"gradient_checkpointing": False, "save_steps": 2, "report_to": "none", "disable_tqdm": True},
    }
    rows = Dataset.from_dict({"prompt": ["aab", "abcabc", "b", "cabbage"]})
    args = (config or trl.GRPOConfig)(**settings | changes)
    return trl.GRPOTrainer(model=model, reward_funcs=reward, args=args, train_dataset=rows, processing_class=tokenizer)


def test_a_trainer_of_ones_own_gets_all_of_it_and_trains_to_the_same_weights(tmp_path, capsys):
    plain = make_trainer(tmp_path / "plain")
    plain.train()
    capsys.readouterr()
    trainer = make_trainer(tmp_path / "equipped")
    equipment = equip(trainer)
    trainer.train()
    assert equipment.metrics() == {"nonfinite_steps": 0, "failed_saves": 0, "shared_prefix/calls": 1.0}
    assert equipment.sharing.shared == {"loss": 4, "generation": 4}
    for (name, weight), other in zip(plain.model.named_parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(other, weight, rtol=1e-3, atol=1e-4, msg=name)
    assert newest_complete(tmp_path / "equipped") == str(tmp_path / "equipped" / "checkpoint-4")
    assert newest_complete(tmp_path / "plain") is None, "TRL's own have no manifest"
    assert (tmp_path / "equipped" / "curves.png").stat().st_size > 10_000
    assert "step 4/4 | reward" in capsys.readouterr().out
    assert not any(isinstance(callback, ProgressCallback) for callback in trainer.callback_handler.callbacks)


def test_the_switch_gives_trls_own_steps_back(tmp_path):
    from recllm.training.configs import GRPOConfig

    trainer = make_trainer(tmp_path, GRPOConfig, shared_prefix=False)
    assert equip(trainer).sharing is None
    assert "_get_per_token_logps_and_entropies" not in vars(trainer) and "_prepare_inputs" not in vars(trainer)
    assert "_save_checkpoint" in vars(trainer), "the rest is there all the same"


def test_a_callback_of_the_publishing_is_called(tmp_path):
    from transformers import TrainerCallback

    class Told(TrainerCallback):
        saves = 0

        def on_save(self, args, state, control, **kwargs):
            self.saves += 1

    told = Told()
    trainer = make_trainer(tmp_path)
    given_up = []
    equip(trainer, SimpleNamespace(callbacks=lambda: [told], give_up=lambda: given_up.append(told.saves)))
    trainer.train()
    assert told.saves == 2 and not given_up

    def broken(completion_ids, **columns):
        raise KeyError("no such column")

    trainer = make_trainer(tmp_path / "broken")
    trainer.reward_funcs[0] = broken
    equip(trainer, SimpleNamespace(callbacks=lambda: [told], give_up=lambda: given_up.append(told.saves)))
    with pytest.raises(RewardError, match="no such column"):
        trainer.train()
    assert given_up == [2], "what was saved may still reach the Hub"
