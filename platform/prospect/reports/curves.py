"""Plots of a training run: losses over steps, precision over recall of the heads, F1 over thresholds."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prospect.evaluation.thresholds import DEFAULT
from prospect.training.events import RunEvent

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Colour-blind safe palette (Okabe and Ito)."""

_HEADS = {"speak": "speak", "update": "update the state"}
_STYLE: Any = {
    "text.parse_math": False,  # a data set's name may hold dollars
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}
_PANEL = (4.2, 3.1)
"""Width and height of one panel, inches."""


def plot_run(folder: Path, events: Iterable[RunEvent]) -> list[Path]:
    """Writes `plots/*.png` in a run's folder.

    Args:
        folder: with the run's `curves.json` and `calibration.json`.
        events: of its `metrics.jsonl`, each step once.

    Returns:
        The pictures; one for which the run has no numbers is left out.
    """
    calibration, curves = _read(folder / "calibration.json"), _read(folder / "curves.json")
    events = [*events]
    with rc_context(_STYLE):
        drawn = {
            "losses": loss_figure(events),
            "scores": score_figure(events),
            "precision_recall": precision_recall_figure(curves) if curves.get("heads") else None,
            "thresholds": threshold_figure(calibration) if calibration.get("curves") else None,
        }
    files = []
    for name, figure in drawn.items():
        if figure is not None:
            files.append(folder / "plots" / f"{name}.png")
            files[-1].parent.mkdir(exist_ok=True)
            figure.savefig(files[-1], dpi=150, metadata={"Software": None})
    return files


def loss_figure(events: Iterable[RunEvent]) -> Figure | None:
    """The loss and its parts over optimizer steps, one panel each: training with its running mean, and validation."""
    train: dict[str, dict[int, float]] = defaultdict(dict)
    validation: dict[str, dict[int, float]] = defaultdict(dict)
    for event in events:
        if event["kind"] == "step":
            for name, value in {"loss": event["loss"], **event["parts"]}.items():
                train[name][event["step"] + 1] = value
        elif event["kind"] == "validation":
            for name, value in event["losses"].items():
                validation[name][event["step"] + 1] = value
    if not train:
        return None
    figure, axes = _panels(len(train), "optimizer step", "loss")
    for axis, name in zip(axes, train, strict=False):
        steps, values = _sorted(train[name])
        axis.plot(steps, values, color=COLOURS[0], alpha=0.25, linewidth=0.8)
        axis.plot(steps, _smooth(values), color=COLOURS[0], linewidth=1.4, label="training")
        if name in validation:
            axis.plot(*_sorted(validation[name]), color=COLOURS[1], marker="o", markersize=3, label="validation")
        axis.set_title("total, weighted" if name == "loss" else name.replace("_", " ").replace("dst", "DST"))
        axis.set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    return figure


def score_figure(events: Iterable[RunEvent]) -> Figure | None:
    """Validation's scores between 0 and 1 over optimizer steps: of decisions and states, and of streaming."""
    scores: dict[str, dict[int, float]] = defaultdict(dict)
    for event in events:
        for name, value in event.get("scores", {}).items():
            scores[name][event["step"] + 1] = value
    groups = {
        "with the reference in sight": ("speak_f1", "speak_average_precision", "update_f1", "update_average_precision",
                                        "state_accuracy", "state_macro_f1"),
        "streaming": ("stream_turn_f1", "stream_dst_f1", "stream_joint_goal_accuracy", "stream_slot_accuracy"),
    }  # fmt: skip
    shown = {title: found for title, names in groups.items() if (found := [name for name in names if name in scores])}
    if not shown:
        return None
    figure, axes = _panels(len(shown), "optimizer step", "score")
    for axis, (title, names) in zip(axes, shown.items(), strict=False):
        for name, colour in zip(names, COLOURS, strict=False):
            label = name.removeprefix("stream_").replace("_", " ").replace("f1", "F1").replace("dst", "DST")
            axis.plot(*_sorted(scores[name]), color=colour, marker="o", markersize=3, label=label)
        axis.set_title(f"validation, {title}")
        axis.set_ylim(0, 1.02)
        axis.legend(frameon=False, fontsize=8)
    return figure


def precision_recall_figure(curves: Mapping[str, Any]) -> Figure:
    """Precision over recall of both heads; the dashed line is random guessing.

    Args:
        curves: `step`, and by head `recall`, `precision`, `threshold`, `labels`, `positives`.
    """
    heads = curves["heads"]
    figure, axes = _panels(len(heads), "recall", "precision")
    for axis, (name, curve), colour in zip(axes, heads.items(), COLOURS, strict=False):
        axis.step(curve["recall"], curve["precision"], where="post", color=colour)
        chance = curve["positives"] / curve["labels"]
        axis.axhline(chance, color="0.5", linestyle="--", linewidth=1)
        axis.annotate(f"at random {chance:.3f}", (0.02, chance), (0, 3), textcoords="offset points", color="0.4")
        _mark_thresholds(axis, curve, colour)
        axis.set(xlim=(0, 1.02), ylim=(0, 1.05))
        axis.set_title(f"{_HEADS.get(name, name)}: {curve['positives']:,} of {curve['labels']:,} frames")
    figure.suptitle(f"Decisions of single frames after step {curves['step']}, validation; dots: thresholds")
    return figure


def _mark_thresholds(axis: Axes, curve: Mapping[str, Sequence[float]], colour: str) -> None:
    """Mark round thresholds on the curve."""
    thresholds = np.asarray(curve["threshold"])
    for threshold in (0.1, 0.5, 0.9):
        if thresholds.min() <= threshold <= thresholds.max():
            nearest = int(np.abs(thresholds - threshold).argmin())
            point = (curve["recall"][nearest], curve["precision"][nearest])
            axis.plot(*point, "o", color=colour, markersize=4)
            axis.annotate(f"{threshold:g}", point, (4, 4), textcoords="offset points", fontsize=8)


def threshold_figure(calibration: Mapping[str, Any]) -> Figure:
    """F1, precision and recall in streaming over the threshold, one row a decision; chosen thresholds marked."""
    parts = ("f1", "precision", "recall")
    decisions = calibration["curves"]
    figure, axes = _panels(len(parts) * len(decisions), "threshold", "", columns=len(parts))
    for row, (name, curves) in enumerate(decisions.items()):
        what = "turns" if name == "speak" else "transitions"
        for axis, part in zip(axes[row * len(parts) :], parts, strict=False):
            for (dataset, points), colour in zip(_told_apart(curves), cycle(COLOURS), strict=False):
                chosen = calibration["thresholds"].get(dataset, {}).get(name)
                _threshold_line(axis, dataset, points, part, colour, chosen)
            axis.set(xlim=(0, 1), ylim=(0, 1.02))
            axis.set_title(f"{name}: {'F1' if part == 'f1' else part} of {what}")
        axes[row * len(parts)].legend(frameon=False, fontsize=8)
    figure.suptitle("Held-out dialogues streamed at every threshold; rings: chosen")
    return figure


def _told_apart(curves: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Curves by data set, and of all together where there are several."""
    datasets = [name for name in sorted(curves) if name != DEFAULT]
    return ((name, curves[name]) for name in [*datasets, *([DEFAULT] if len(datasets) != 1 else [])])


def _threshold_line(
    axis: Axes, dataset: str, points: Sequence[Mapping[str, float]], part: str, colour: str, chosen: float | None
) -> None:
    together = dataset == DEFAULT
    line, colour = ("--", "0.3") if together else ("-", colour)
    label = f"{'all' if together else dataset} ({points[0]['events']:,.0f})"
    thresholds, values = [point["threshold"] for point in points], [point[part] for point in points]
    axis.plot(thresholds, values, line, color=colour, marker=".", label=label)
    if chosen in thresholds:
        at = values[thresholds.index(chosen)]
        axis.plot(chosen, at, "o", markersize=10, mfc="none", mec=colour, mew=1.6, clip_on=False)


def _panels(count: int, across: str, up: str, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels with common labels."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    figure.supxlabel(across)
    figure.supylabel(up)
    return figure, axes[:count]


def _sorted(values: Mapping[int, float]) -> tuple[list[int], list[float]]:
    steps = sorted(values)
    return steps, [values[step] for step in steps]


def _smooth(values: Sequence[float]) -> list[float]:
    """Centred running mean over a tenth of the run, with shorter windows at its ends."""
    widest, last = len(values) // 20, len(values) - 1
    widths = [min(widest, step, last - step) for step in range(len(values))]
    return [float(np.mean(values[step - width : step + width + 1])) for step, width in enumerate(widths)]


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}
