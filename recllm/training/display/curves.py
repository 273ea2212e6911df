"""Pictures of a run's curves without any tracker: one figure, drawn again at every checkpoint and at the end.

It is drawn from the trainer's log history, which a resumed run takes over from its checkpoint: the picture shows the
whole run. Who wants the numbers live besides sets `report_to`: TensorBoard comes with the extra `tracking`; wandb and
trackio go the same way, where they are installed, and are neither required nor tested here.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

CURVES_FILE = "curves.png"
_COLUMNS = 2
# Curves of one panel beyond which nobody tells colours apart.
_MOST = 9
# Up to so many points are drawn as they are.
_FEW = 20
_SMOOTH = 10  # a curve's running mean is over a tenth of its points
# Where this logged number rises, a stage of the curriculum begins: a vertical line in every panel.
STAGE_KEY = "curriculum_stage"


@dataclass(frozen=True)
class Panel:
    """Axes of one figure: the logged keys that it draws, under the names that the legend gives them."""

    title: str
    unit: str
    keys: Mapping[str, str]
    sign: float = 1.0


def draw_curves(trainer: Any) -> None:
    """Have `output_dir/curves.png` drawn at every save and at the end of training, by the main process.

    A drawing that fails is told in the log and stops nothing.
    """
    trainer.add_callback(Curves())


class Curves(TrainerCallback):
    """See `draw_curves`."""

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            try:
                plot_curves(state.log_history, Path(args.output_dir) / CURVES_FILE)
            except Exception as error:  # whatever a picture's library comes to, training is worth more
                logger.warning("step %d: %s was not drawn: %s", state.global_step, CURVES_FILE, error)

    on_train_end = on_save


def plot_curves(log_history: Sequence[Mapping[str, Any]], path: Path) -> list[str]:
    """Draw every panel that has data into one picture; returns their titles (none: no picture).

    A reader of the file sees the old picture or the new one. Values that are no finite numbers leave a gap.
    """
    drawn = [(panel, series) for panel in panels(log_history) if (series := curves(log_history, panel))]
    if not drawn:
        return []
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(7.2 * columns, 3.1 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    steps = [x for _, series in drawn for xs, _ in series.values() for x in xs]
    for place, (panel, series) in enumerate(drawn):
        axes = figure.add_subplot(rows, columns, place + 1)
        _draw(axes, panel, series, (min(steps), max(steps)))
        for step in promotions(log_history):
            axes.axvline(step, color="0.4", linestyle="--", linewidth=1)
    if any(len(steps) > _FEW for _, series in drawn for steps, _ in series.values()):
        figure.suptitle("pale: what was logged; bold: its mean over a tenth of the run", fontsize=9, color="0.35")
    staging = path.with_name(f".{path.name}")
    figure.savefig(staging, format="png", dpi=110, metadata={"Software": "recllm"})
    staging.replace(path)
    return [panel.title for panel, _ in drawn]


def panels(log_history: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The panels of a run; those of rewards name the parts that this run logged."""
    logged = list(dict.fromkeys(key for entry in log_history for key in entry))
    parts = {key: key.split("/")[1] for key in logged if _is_part(key)}
    stages = {key: key.removeprefix("stage_reward/") for key in logged if key.startswith("stage_reward/")}
    ndcg = {key: key for key in logged if "ndcg" in key} | {"rewards/quality/mean": "NDCG@10 of the episodes"}
    recall = {key: key for key in logged if "recall" in key}
    lengths = {f"completions/{end}_length": name for end, name in (("mean", "mean"), ("max", "longest"))}
    return [
        Panel("reward", "reward", {"reward": "reward"}),
        Panel("reward by stage of the curriculum", "reward", stages),
        Panel("parts of the reward", "mean", dict(list(parts.items())[:_MOST])),
        Panel("quality", "0..1", {**ndcg, **recall}),
        Panel("cost of the tools called", "share of the slowest", {"rewards/cost/mean": "cost"}, sign=-1.0),
        Panel("loss", "loss", {"loss": "training", "eval_loss": "evaluation"}),
        Panel("gradient before clipping", "norm", {"grad_norm": "norm"}),
        Panel("entropy", "nats a token", {"entropy": "entropy"}),
        Panel("distance to the reference", "KL, nats a token", {"kl": "KL"}),
        Panel("length of completions", "tokens", lengths),
    ]


def _is_part(key: str) -> bool:
    return key.startswith(("rewards/", "terms/")) and key.endswith("/mean")


def promotions(log_history: Sequence[Mapping[str, Any]]) -> list[float]:
    """Steps at which a stage of a curriculum began, the first aside."""
    known = {entry["step"]: entry[STAGE_KEY] for entry in log_history if STAGE_KEY in entry and "step" in entry}
    steps = sorted(known)
    return [step for before, step in itertools.pairwise(steps) if known[step] > known[before]]


def curves(log_history: Sequence[Mapping[str, Any]], panel: Panel) -> dict[str, tuple[list[float], list[float]]]:
    """Label -> (steps, values) of what the history holds for a panel; of a step that was logged twice, the last."""
    found = {}
    for key, label in panel.keys.items():
        points = {}
        for entry in log_history:
            value = entry.get(key)
            if isinstance(value, (int, float)) and "step" in entry:
                points[entry["step"]] = panel.sign * value if math.isfinite(value) else math.nan
        if any(math.isfinite(value) for value in points.values()):
            steps = sorted(points)
            found[label] = (steps, [points[step] + 0.0 for step in steps])
    return found


def _draw(axes: Any, panel: Panel, series: Mapping[str, tuple[list, list]], limits: tuple[float, float]) -> None:
    axes.set_title(panel.title, fontsize=11, loc="left")
    axes.set_xlabel("step")
    axes.set_ylabel(panel.unit)
    axes.grid(alpha=0.3)
    for label, (steps, values) in series.items():
        few = len(steps) <= _FEW
        (line,) = axes.plot(steps, values, alpha=1.0 if few else 0.3, marker="o" if few else None, markersize=3)
        if few:
            line.set_label(label)
        else:
            axes.plot(steps, smooth(values), color=line.get_color(), label=label)
    if limits[0] < limits[1]:
        margin = 0.02 * (limits[1] - limits[0])
        axes.set_xlim(limits[0] - margin, limits[1] + margin)  # the same steps stand below each other
    axes.locator_params(axis="x", integer=True)
    if len(series) > 1:  # one curve is what the title says
        # Outside of the data, in a column that the layout keeps free.
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, frameon=False)


def smooth(values: Sequence[float]) -> np.ndarray:
    """The running mean over a tenth of the points, centred, and over fewer at the ends; gaps are passed over."""
    array = np.asarray(values, float)
    half = max(1, len(array) // _SMOOTH) // 2
    windows = (array[max(0, i - half) : i + half + 1] for i in range(len(array)))
    return np.array([np.nan if np.isnan(window).all() else np.nanmean(window) for window in windows])
