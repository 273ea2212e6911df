"""The card of a folder: what it is, how to load it, what was measured and where it came from, all from its records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recllm.hub import card_merge
from recllm.hub import card_parts as parts
from recllm.provenance import METRICS_FILE, RUN_FILE, RunRecord, read_json

TEMPLATE = Path(__file__).with_name("card_template.md")
_WHAT = {
    "train_sid_tokenizer": "Semantic ids for the items of a catalogue.",
    "train_backbone": "A sequential recommender that ranks the whole catalogue from a history.",
    "init_quickstart_lm": "A small language model with random weights and a tokenizer of its own, to be trained on.",
    "extend_vocab": "A language model whose vocabulary was extended by the tokens of semantic ids.",
    "sft": "A language model fine-tuned on chats about recommendation.",
    "merge_deliver": "A language model merged of a direct and a thinking parent, at one point between speed and depth.",
    "grpo_planner": "A language model that chooses per user between a fast retriever, a ranker and a slow reasoner.",
}
_CLASSES = {"sasrec": "SASRec", "din": "DIN", "hstu": "HSTU", "tiger": "TIGER", "glass": "GLASS"}
_QUALITY = re.compile(r"(ndcg|recall|hit|mrr|map|precision)(@\d+)?")
_SLUG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_HUB_URL = "https://huggingface.co/"


def render_card(folder: str | Path, record: Mapping[str, Any] | None = None) -> str:
    """The model card of a run folder.

    Args:
        record: what run.json holds or will hold; keys used where present are recipe, config, inputs, seed, git_sha,
            git_dirty, versions, device, wall_seconds, peak_memory_gib, fingerprint, assets (records of
            `assets.source_of`), dataset (a dataset.json), license, limits (sentences), merge (see
            `card_merge`), model_class (`recllm.backbones.sasrec:SASRec`) and metrics (else metrics.json is read).
            Default: run.json itself.

    Raises:
        ValueError: run.json or metrics.json is torn.
    """
    return _render(Path(folder), record, is_dataset=False)


def render_dataset_card(folder: str | Path, record: Mapping[str, Any] | None = None) -> str:
    """The card of a chat data set saved to disk; arguments and errors as for `render_card`."""
    return _render(Path(folder), record, is_dataset=True)


def write_card(run: RunRecord, metrics: Mapping[str, Any], is_dataset: bool = False) -> Path:
    """Write README.md of a run that is about to `finish(metrics)`; returns its path.

    Keys that a card wants besides (assets, dataset, license, limits, model_class) go into `run.extra` before.
    """
    record = {**run.draft(), "metrics": metrics}
    path = run.folder / "README.md"
    path.write_text(_render(run.folder, record, is_dataset), encoding="utf-8")
    return path


def _render(folder: Path, record: Mapping[str, Any] | None, is_dataset: bool) -> str:
    from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData

    record = _json_or_empty(folder / RUN_FILE) if record is None else record
    metrics = record.get("metrics")
    metrics = _json_or_empty(folder / METRICS_FILE) if metrics is None else metrics
    recipe = parts.plain(record.get("recipe") or "unknown")
    made = "A data set for recommendation" if is_dataset else "A folder made on the way to a recommender"
    context = {
        "title": parts.code(folder.resolve().name),
        "what": f"{_WHAT.get(recipe, f'{made}.')} Made with recllm by the recipe {parts.code(recipe)}.",
        "is_dataset": is_dataset,
        "load": _load_data_set() if is_dataset else _load_model(folder, record),
        "data": parts.data_rows(record),
        "columns": _columns(folder) if is_dataset else [],
        "command": _command(recipe),
        "config": parts.shown_config(record.get("config") or {}),
        "measured": parts.metric_rows(metrics, costs=False),
        "costs": parts.metric_rows(metrics, costs=True) + parts.run_costs(record),
        "merge": card_merge.context(folder, record),
        "limits": _limits(record, is_dataset),
        "provenance": parts.provenance_rows(record),
        "assets": parts.asset_rows(record),
    }
    kind, data_kind = (DatasetCard, DatasetCardData) if is_dataset else (ModelCard, ModelCardData)
    data = data_kind(**_front_matter(folder, record, metrics, recipe, is_dataset))
    text = str(kind.from_template(data, template_path=str(TEMPLATE), **context))
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _front_matter(
    folder: Path, record: Mapping[str, Any], metrics: Mapping[str, Any], recipe: str, is_dataset: bool
) -> dict[str, Any]:
    tags = ["recllm", "recommendation", *([recipe] if _SLUG.fullmatch(recipe) else [])]
    tags += ["semantic-ids"] if (folder / "sid_table").is_dir() else []
    data_sets = [name for name in _data_set_names(record) if _SLUG.fullmatch(name)]
    base, licence = _base_model(record)
    fields: dict[str, Any] = {"tags": tags, **_license(record, licence)}
    if is_dataset:
        return {**fields, "source_datasets": data_sets or None}
    architectures = _json_or_empty(folder / "config.json").get("architectures") or []
    fields["library_name"] = "transformers" if architectures else "recllm"
    fields["pipeline_tag"] = "text-generation" if "CausalLM" in str(architectures) else None
    fields["datasets"] = data_sets or None
    fields["base_model"] = base
    fields |= card_merge.fields(record, tags)
    # A model that was graded on validation, where it was chosen among others, has no result to tell.
    graded = (record.get("config") or {}).get("eval_role", "test") == "test"
    results = _eval_results(metrics, recipe, data_sets) if graded else []
    return {**fields, "eval_results": results, "model_name": parts.plain(folder.resolve().name)} if results else fields


def _base_model(record: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """(Hub id, licence) of the model that training started from, where the records name one."""
    config = record.get("config") or {}
    used = {value for value in config.values() if isinstance(value, str)}
    for entry in parts.assets(record):
        if entry.get("kind") == "model" and entry.get("name") in used:
            source = entry.get("source") if isinstance(entry.get("source"), Mapping) else {}
            at_hub = str(source.get("location") or "").split("@")[0] if source.get("kind") == "hub" else ""
            hub_id = at_hub or str(entry.get("terms") or "").removeprefix(_HUB_URL)
            if _is_hub_id(hub_id):
                return hub_id, entry.get("licence")
    for key in ("base_model", "model_name_or_path"):
        value = str(config.get(key) or "")
        if _is_hub_id(value) and not Path(value).exists() and not value.startswith("outputs/"):
            return value, None
    return None, None


def _is_hub_id(value: str) -> bool:
    return value.count("/") == 1 and all(_SLUG.fullmatch(part) for part in value.split("/"))


def _license(record: Mapping[str, Any], of_base: str | None) -> dict[str, str]:
    named = str(record.get("license") or record.get("licence") or of_base or "").lower()
    if re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", named):
        return {"license": named}
    return {"license": "other", "license_name": "terms-of-the-sources"}


def _data_set_names(record: Mapping[str, Any]) -> list[str]:
    named = [entry.get("name") for entry in parts.assets(record) if entry.get("kind") == "data set"]
    own = record.get("dataset")
    named.insert(0, own.get("name") if isinstance(own, Mapping) else None)
    return list(dict.fromkeys(parts.plain(name) for name in named if name))


def _eval_results(metrics: Mapping[str, Any], recipe: str, data_sets: list[str]) -> list[Any]:
    """The model's own ranking metrics, for the Hub's index; those of the systems it is compared with stay out."""
    from huggingface_hub import EvalResult

    task = {"task_type": "other", "task_name": "Recommendation, ranking of the whole catalogue"}
    data = dict.fromkeys(("dataset_type", "dataset_name"), data_sets[0] if data_sets else "unnamed")
    found = []
    for name, value in metrics.items():
        prefix, _, metric = name.rpartition("/")
        own = prefix in ("", "test", recipe.split("_")[-1]) and _QUALITY.fullmatch(metric)
        if own and parts.finite(value):
            between, n = parts.interval(metrics, name), parts.count(metrics, name)
            label = metric + (f", 95% interval {between}" if between else "") + (f", n = {n}" if n else "")
            found.append(EvalResult(**task, **data, metric_type=metric, metric_value=float(value), metric_name=label))
    return found


def _command(recipe: str) -> str:
    name = recipe if _SLUG.fullmatch(recipe) else "RECIPE"
    if (Path(__file__).parents[2] / "data_prep" / f"{name}.py").exists():
        return f"python data_prep/{name}.py --config config.yaml"
    return f"accelerate launch recipes/{name}.py --config config.yaml"


def _load_model(folder: Path, record: Mapping[str, Any]) -> str:
    if _json_or_empty(folder / "config.json").get("architectures"):
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            'model = AutoModelForCausalLM.from_pretrained(".")',
            'tokenizer = AutoTokenizer.from_pretrained(".")',
        ]
    elif found := _model_class(record):
        module, name = found
        lines = [f"from {module} import {name}", f'model = {name}.from_pretrained(".").eval()']
    else:
        lines = ["from recllm.provenance import load_run", 'run = load_run(".")']
    if tables := [name for name in (".", "sid_table") if (folder / name / "sid_table.json").is_file()]:
        table = ["from recllm.sid.table import SidTable", f'sids = SidTable.load("{tables[0]}")']
        lines = table if lines[0].endswith("load_run") else [*lines, *table]
    return "\n".join(lines)


def _model_class(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """(module, class) of a model of this project: named by the record, or known by the backbone in the config."""
    named = re.fullmatch(r"(recllm(?:\.\w+)+):(\w+)", str(record.get("model_class") or ""))
    if named:
        return named.group(1), named.group(2)
    config = record.get("config") or {}
    kind = next((config[key] for key in ("backbone", "model", "name") if config.get(key) in _CLASSES), None)
    return (f"recllm.backbones.{kind}", _CLASSES[kind]) if kind else None


def _load_data_set() -> str:
    return 'from datasets import load_from_disk\nrows = load_from_disk(".")\nprint(rows)'


def _columns(folder: Path) -> list[list[str]]:
    """(column, type) of the saved data set, of its first split where there are several."""
    for info in [folder / "dataset_info.json", *sorted(folder.glob("*/dataset_info.json"))]:
        if features := _json_or_empty(info).get("features"):
            return [[parts.code(name), parts.code(kind)] for name, kind in parts.walk_features(features)]
    return []


def _limits(record: Mapping[str, Any], is_dataset: bool) -> list[str]:
    given = record.get("limits") or []
    told = [parts.prose(limit) for limit in ([given] if isinstance(given, str) else given)]
    if is_dataset:
        told.append("Text written by a model or a template can be wrong about an item or a user.")
        told.append("Item titles are quoted from the source data and are not checked for content.")
    else:
        told.append("The figures hold for this data set, this split and this seed; other data was not tried.")
        told.append("It learns from logged behaviour and repeats its biases, towards popular items above all.")
    if record.get("git_dirty"):
        told.append("The code had uncommitted changes: the commit alone does not reproduce it.")
    told.append("The terms of the data and of the base model apply besides the licence named above.")
    return told


def _json_or_empty(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.exists() else {}
    return found if isinstance(found, dict) else {}
