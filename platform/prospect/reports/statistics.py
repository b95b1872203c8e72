"""Plots of label statistics by data set and split: SVG files and one HTML page."""

import base64
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jinja2
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from prospect.data.sources.placement import total_frames
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.timeline import FPS, place
from prospect.files import open_filesystem, write_file

Group = tuple[str, str]
"""(data set, split)."""

BINS = 40
PANELS_A_ROW = 3
MARGIN = 0.02
"""Share of the largest values that the last bin collects, so that an outlier does not flatten a plot."""

SPLIT_COLOURS = {"train": "#0072b2", "val": "#d55e00", "validation": "#d55e00", "test": "#009e73"}
OTHER_COLOUR = "#7f7f7f"


@dataclass(frozen=True)
class Measure:
    """A plotted quantity."""

    name: str
    """Name of its file."""
    title: str
    axis: str
    """What the horizontal axis shows, with its unit."""


MEASURES = (
    Measure("video_length", "Length of videos", "minutes"),
    Measure("user_turns", "User turns", "turns a minute of a dialogue"),
    Measure("assistant_turns", "Assistant turns", "turns a minute of a dialogue"),
    Measure("steps", "Steps of a video", "steps"),
    Measure("step_duration", "Duration of steps", "seconds"),
    Measure("speak_rate", "Frames at which the assistant speaks", "% of a dialogue's frames"),
    Measure("update_rate", "Frames at which the state changes", "% of a dialogue's frames"),
    Measure("confidence", "Confidence of steps' times", "confidence"),
)


@dataclass
class Values:
    """Measurements of one group: values by measure, and counts."""

    of: dict[str, list[float]] = field(default_factory=lambda: {measure.name: [] for measure in MEASURES})
    frames: dict[str, int] = field(default_factory=dict)
    """T by video id."""
    dialogues: int = 0
    dialogue_frames: int = 0
    speak: int = 0
    update: int = 0

    def add(self, dialogue: Dialogue, total: int) -> None:
        """Add the measurements of one dialogue at its frames."""
        events = place(dialogue, total).events.values()
        speak = sum(happens.utterance is not None for happens in events)
        update = sum(bool(happens.delta) for happens in events)
        minutes = total / FPS / 60
        users = sum(turn.role == "user" for turn in dialogue.turns)
        if dialogue.turns:
            self.of["user_turns"].append(users / minutes)
            self.of["assistant_turns"].append((len(dialogue.turns) - users) / minutes)
            self.of["speak_rate"].append(100 * speak / total)
        if dialogue.has_dst_labels:
            self.of["update_rate"].append(100 * update / total)
        if dialogue.video_id not in self.frames:  # dialogues of one video share its recipe
            self.of["video_length"].append(minutes)
            self.of["steps"].append(len(dialogue.steps))
            self.of["step_duration"] += [
                step.end - step.start for step in dialogue.steps if step.start is not None and step.end is not None
            ]
            self.of["confidence"] += [step.confidence for step in dialogue.steps if step.confidence is not None]
        self.frames[dialogue.video_id] = total
        self.dialogues += 1
        self.dialogue_frames += total
        self.speak += speak
        self.update += update

    def row(self) -> dict[str, str]:
        """The group's line of the table: counts, medians, and the class balance over all frames."""

        def median(name: str, digits: int) -> str:
            return f"{np.median(self.of[name]):.{digits}f}" if self.of[name] else "-"

        return {
            "videos": f"{len(self.frames):,}",
            "hours": f"{sum(self.frames.values()) / FPS / 3600:.2f}",
            "dialogues": f"{self.dialogues:,}",
            "minutes a video": median("video_length", 1),
            "user turns a minute": median("user_turns", 2),
            "assistant turns a minute": median("assistant_turns", 2),
            "steps a video": median("steps", 0),
            "seconds a step": median("step_duration", 1),
            "confidence": median("confidence", 2),
            "speak frames": f"{100 * self.speak / self.dialogue_frames:.2f} %",
            "update frames": f"{100 * self.update / self.dialogue_frames:.2f} %",
        }


def plot_statistics(
    dialogues: Iterable[Dialogue], root: str, frames_of: Callable[[str], int | None] = lambda _: None
) -> list[str]:
    """Writes `labels/plots/` below `root`: `statistics.html`, which holds everything, and one SVG a measure.

    Args:
        dialogues: labelled.
        root: absolute path or URL of the storage root.
        frames_of: T of a video that has an embedding, else None.

    Returns:
        Where the files lie, the page first. A measure of which nobody has a value has no file.
    """
    groups = measure(dialogues, frames_of)
    plots = {each: draw(each, groups) for each in MEASURES if any(values.of[each.name] for values in groups.values())}
    missing = [each.title for each in MEASURES if each not in plots]
    files = {"statistics.html": _page(groups, plots, missing).encode()}
    files |= {f"{each.name}.svg": svg for each, svg in plots.items()}
    filesystem, base = open_filesystem(root)
    for name, data in files.items():
        write_file(filesystem, f"{base}/labels/plots/{name}", data)
    return [f"{root}/labels/plots/{name}" for name in files]


def measure(dialogues: Iterable[Dialogue], frames_of: Callable[[str], int | None]) -> dict[Group, Values]:
    """The values of every group, groups sorted by data set, then train before val before test."""
    groups: dict[Group, Values] = defaultdict(Values)
    for dialogue in dialogues:
        groups[dialogue.dataset, dialogue.split].add(dialogue, total_frames(dialogue, frames_of(dialogue.video_id)))
    return dict(sorted(groups.items(), key=lambda item: _place(*item[0])))


def _place(dataset: str, split: str) -> tuple[str, int, str]:
    known = list(SPLIT_COLOURS)
    return dataset, known.index(split) if split in known else len(known), split


def draw(each: Measure, groups: Mapping[Group, Values]) -> bytes:
    """One panel a data set, one outline a split, as SVG; every panel has its own scale."""
    panels: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for (dataset, split), values in groups.items():
        if values.of[each.name]:
            panels[dataset][split] = np.asarray(values.of[each.name], dtype=float)
    columns = min(PANELS_A_ROW, len(panels))
    rows = -(-len(panels) // columns)
    style: Any = {"font.size": 9, "svg.hashsalt": each.name, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context({**style, "text.parse_math": False}):  # a data set's name may hold dollars
        figure = Figure(figsize=(3.9 * columns, 2.3 * rows + 0.3), layout=ConstrainedLayoutEngine(h_pad=0.1))
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis, (dataset, splits) in zip(axes, panels.items(), strict=False):
            _panel(axis, dataset, splits)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        figure.suptitle(each.title)
        figure.supxlabel(each.axis)
        figure.supylabel("share of values, %")
        data = io.BytesIO()
        figure.savefig(data, format="svg", metadata={"Date": None}, transparent=True)
    return data.getvalue()


def _panel(axis: Axes, dataset: str, splits: Mapping[str, np.ndarray]) -> None:
    together = np.concatenate(list(splits.values()))
    low, high = min(0.0, together.min()), float(np.quantile(together, 1 - MARGIN))
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    for split, values in splits.items():
        counts, _ = np.histogram(values.clip(None, edges[-1]), edges)
        colour = SPLIT_COLOURS.get(split, OTHER_COLOUR)
        shares = 100 * counts / len(values)
        axis.stairs(shares, edges, color=colour, linewidth=1.4, label=f"{split or 'no split'} ({len(values):,})")
        axis.stairs(shares, edges, fill=True, color=colour, alpha=0.15)
    axis.set_title(dataset, fontsize=9)
    axis.legend(frameon=False, fontsize=8)


def _page(groups: Mapping[Group, Values], plots: Mapping[Measure, bytes], missing: list[str]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("prospect.reports"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    shown: list[dict[str, Any]] = [
        {"title": each.title, "axis": each.axis, "uri": f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"}
        for each, svg in plots.items()
    ]
    rows = [(dataset, split or "-", values.row()) for (dataset, split), values in groups.items()]
    return environment.get_template("statistics.html").render(rows=rows, plots=shown, missing=missing, margin=MARGIN)
