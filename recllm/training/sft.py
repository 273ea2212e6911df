"""Supervised fine-tuning on chat data sets with TRL's SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from recllm.sid.vocabulary import TABLE_FOLDER

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import ModelConfig, SFTConfig, SFTTrainer

    from recllm.provenance import RunRecord

TRAINABLE = ("all", "sid_rows")


class Watch(Protocol):
    """A trainer callback that has numbers to tell about the run when it is over."""

    def metrics(self) -> dict[str, float]:
        """Flat names to numbers."""
        ...


def load_chats(folder: str | Path) -> Dataset:
    """A chat data set saved by a data_prep script.

    Raises:
        ValueError: the folder holds no data set, or one without the column `messages` or `prompt`.
    """
    from datasets import Dataset

    if not (Path(folder) / "dataset_info.json").is_file():
        raise ValueError(f"{folder} holds no saved data set; make it with a data_prep script")
    rows = Dataset.load_from_disk(str(folder))
    if not {"messages", "prompt"} & set(rows.column_names):
        raise ValueError(f"{folder}: found the columns {rows.column_names}, need messages (or prompt and completion)")
    return rows


def load_model(model_args: ModelConfig):
    """Tokenizer and model of a checkpoint folder or Hub id, in the dtype asked for (float32 by default on the CPU)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = model_args.dtype if model_args.dtype in ("auto", None) else getattr(torch, model_args.dtype)
    name, revision = model_args.model_name_or_path, model_args.model_revision
    model = AutoModelForCausalLM.from_pretrained(
        name, revision=revision, dtype=dtype, attn_implementation=model_args.attn_implementation
    )
    return AutoTokenizer.from_pretrained(name, revision=revision), model


def sid_row_ids(tokenizer: PreTrainedTokenizerBase, model_folder: str | Path) -> list[int]:
    """Embedding rows of the SID tokens, ascending; none where the checkpoint carries no SID table."""
    from recllm.sid.table import SidTable
    from recllm.sid.vocabulary import sid_token_ids

    folder = Path(model_folder) / TABLE_FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(row) for level in sid_token_ids(tokenizer, SidTable.load(folder)) for row in level)


def peft_config(
    model: PreTrainedModel, rows: Sequence[int], model_args: ModelConfig, trainable: str = "all"
) -> PeftConfig | None:
    """What PEFT is to train: `rows` of the embeddings alone, LoRA and `rows`, or (None) nothing, as all weights train.

    Tied embeddings stay tied and train once; untied ones train `rows` of the input and of the output head. After
    merging, all other rows and weights have the bits that they started with (`sid_rows`).

    Raises:
        ValueError: an unknown `trainable`, `sid_rows` together with LoRA or without rows, or an output head with a
            bias, which PEFT would leave out.
    """
    from peft import LoraConfig
    from peft.utils.constants import DUMMY_TARGET_MODULES
    from trl import get_peft_config

    if trainable not in TRAINABLE:
        raise ValueError(f"trainable must be one of {', '.join(TRAINABLE)}; got {trainable!r}")
    only_rows = trainable == "sid_rows"
    if only_rows and (model_args.use_peft or not rows):
        why = "use_peft trains other weights, too" if model_args.use_peft else "the model carries no sid_table/"
        raise ValueError(f"trainable: sid_rows trains the embedding rows of SID tokens and nothing else, but {why}")
    lora = get_peft_config(model_args)
    if not rows or (lora is None and not only_rows):
        return lora
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise ValueError("the model's output head has a bias, which PEFT's trainable tokens would leave out")
    # Without targets LoRA is nothing but its token rows. PEFT's TrainableTokensConfig would put a layer in the head's
    # place whose `weight`, which TRL's loss reads, is the base weight: the rows would not learn to be answers.
    config = lora or LoraConfig(task_type=model_args.lora_task_type, target_modules=DUMMY_TARGET_MODULES)
    config.trainable_token_indices = {name: list(rows) for name in _embeddings(model)}
    return config


def _embeddings(model: PreTrainedModel) -> list[str]:
    """Names of the embedding modules with weights of their own; PEFT finds a tied head by itself."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    wanted = [inputs] if outputs is None or outputs.weight is inputs.weight else [inputs, outputs]
    names = {id(module): name.rpartition(".")[2] for name, module in model.named_modules()}
    return [names[id(module)] for module in wanted]


def validation_watches(
    dataset: str | None, sid_table: str | Path, steps: int, users: int, patience: int, at_start: bool = False
) -> list[Watch]:
    """A callback that measures NDCG on validation users every `steps` steps, or none where `steps` is 0.

    `at_start` is for a model that recommends already: where training only harms, what it started from is delivered.

    Raises:
        ValueError: steps without a data set.
    """
    if steps <= 0:
        return []
    if not dataset:
        raise ValueError(f"validation_steps: {steps} needs validation_dataset, the folder of the data set")
    from recllm.training.validation import ValidationNDCG

    asked = {"steps": steps, "users": users, "patience": patience, "at_start": at_start}
    return [ValidationNDCG(dataset=dataset, sid_table=sid_table, **asked)]


def build_sft_trainer(
    rows: Dataset,
    training_args: SFTConfig,
    model_args: ModelConfig,
    trainable: str = "all",
    watches: Sequence[Watch] = (),
) -> SFTTrainer:
    """An SFTTrainer over `rows`; columns that are not part of the chat are dropped. `peft_config` tells of `trainable`.

    LoRA trains the rows of the SID tokens besides its matrices, since tokens that never moved say nothing.
    """
    from trl import SFTTrainer

    tokenizer, model = load_model(model_args)
    sid_rows = sid_row_ids(tokenizer, model_args.model_name_or_path)
    spoken = [name for name in rows.column_names if name in ("messages", "prompt", "completion", "tools")]
    trainer = SFTTrainer(
        model=model,
        args=training_args,
        train_dataset=rows.select_columns(spoken),
        processing_class=tokenizer,
        peft_config=peft_config(model, sid_rows, model_args, trainable),
        callbacks=list(watches),
    )
    name_bias(model)
    return trainer


def name_bias(model: PreTrainedModel) -> None:
    """Give the output head the attribute `bias` where it lacks one.

    TRL's losses read it, and PEFT's wrapper of a head knows the weight alone. A model whose head has a bias never comes
    to such a wrapper (`peft_config`).
    """
    head = model.get_output_embeddings()
    if not hasattr(head, "bias"):
        head.bias = None


def train_and_deliver(
    trainer: SFTTrainer, record: RunRecord, source: str, watches: Sequence[Watch] = (), chats: str | None = None
) -> dict[str, float]:
    """Train from the newest complete checkpoint, deliver merged weights, and return the run's numbers.

    chats: folder of the chat data set; a vocabulary of needs that lies there goes with the model.
    """
    from recllm.training.save import copy_needs, deliver, newest_checkpoint, remove_checkpoints, whole

    outcome = trainer.train(resume_from_checkpoint=newest_checkpoint(record.folder))
    model = whole(trainer)
    if model is not None:
        deliver(model, trainer.processing_class, record.folder, source)
        if chats is not None:
            copy_needs(chats, record.folder)
        remove_checkpoints(record.folder)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    metrics = {"loss/first": losses[0], "loss/last": losses[-1]} if losses else {}
    for watch in watches:
        metrics |= watch.metrics()
    return metrics | {"steps": trainer.state.global_step, "train_seconds": outcome.metrics["train_runtime"]}
