"""The best score so far, trial by trial, of one tuner or several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from recllm.evaluation.report import blank_figure, save_figure
from recllm.tuning.reports.curves import best_so_far, mean_curve

FILE = "best_so_far.png"


def plot_curves(scores: Mapping[str, list[list[float]]], full: float, path: Path) -> None:
    """Write the picture: a line a tuner, the mean over its studies with the band of its 95% bootstrap interval.

    A tuner's line ends where its shortest study does. The first tuner's line is the thick one, over the others.

    Args:
        scores: tuner -> scores of its studies. full: the default's score, drawn as a level.
    """
    from matplotlib import colormaps

    from recllm.merging.report_plot import said

    figure, axes = blank_figure("trials", "best validation NDCG@10 so far")
    axes.axhline(full, color="grey", linewidth=1, linestyle=":", label="default")
    for place, (label, many) in enumerate(scores.items()):
        length = min(len(one) for one in many)
        curve = mean_curve(np.array([best_so_far(one)[:length] for one in many]))
        colour, trial_T = colormaps["tab10"](place % 10), np.arange(1, length + 1)
        style = {"color": colour, "zorder": 3 if place else 4, "linewidth": 1.4 if place else 2.4}
        studies = f"{len(many)} studies" if len(many) > 1 else "1 study"
        axes.plot(trial_T, curve.mean_T, label=f"{said(label)} ({studies})", drawstyle="steps-post", **style)
        if len(many) > 1:
            axes.fill_between(trial_T, curve.lo_T, curve.hi_T, color=colour, alpha=0.18, linewidth=0, step="post")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8, loc="lower right")
    save_figure(figure, path)
