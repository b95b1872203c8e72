"""Curves of an evaluation as charts that a page draws as SVG, in the colours of its theme."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prospect.evaluation.thresholds import DEFAULT
from prospect.reports.evaluation.words import words

WIDTH, HEIGHT = 340, 220
"""Of a chart's picture, px."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 10, 8, 34
MOST_LINES = 6
"""As many as a page has colours for."""

_TICKS = 5
_MOST_NUMBERS = 40
_NICE = (1, 2, 2.5, 5, 10)


@dataclass(frozen=True)
class Line:
    """A named line of a chart."""

    name: str
    points: tuple[tuple[float, float], ...]

    @property
    def some_points(self) -> tuple[tuple[float, float], ...]:
        """At most `_MOST_NUMBERS` of them, evenly chosen, with the last."""
        every = -(-len(self.points) // _MOST_NUMBERS)
        return self.points[::-1][::every][::-1]


@dataclass(frozen=True)
class Chart:
    """Lines over one axis; the vertical axis begins at 0 and ends at 1 or above."""

    title: str
    across: str
    lines: tuple[Line, ...]
    level: float | None = None
    """Height of a dashed line: what guessing at random gives."""
    diagonal: bool = False
    """Whether the line of perfect agreement is drawn."""

    @property
    def _wide(self) -> tuple[float, float]:
        values = [x for line in self.lines for x, _ in line.points]
        low, high = min(values), max(values)
        if low >= 0 and high <= 1:
            whole = self.diagonal or self.level is not None or high - low > 0.5 or high == low
            return (0.0, 1.0) if whole else (low, high)
        return min(low, 0.0), high if high > low else low + 1

    @property
    def _high(self) -> tuple[float, float]:
        values = [y for line in self.lines for _, y in line.points]
        return min(0.0, *values), max(1.0, *values)

    def x(self, value: float) -> float:
        low, high = self._wide
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self._high
        return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _BOTTOM - _TOP)

    def path(self, line: Line) -> str:
        """Of an SVG polyline."""
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in line.points)

    @property
    def x_ticks(self) -> list[float]:
        return _ticks(*self._wide)

    @property
    def y_ticks(self) -> list[float]:
        return _ticks(*self._high)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, about `_TICKS` of them."""
    rough = (high - low) / _TICKS
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(scale * nice for nice in _NICE if scale * nice >= rough * 0.999)
    first = -(-low // step) * step
    return [first + step * number for number in range(int((high - first) / step + 1.001))]


def charts_of(curves: Mapping[str, Mapping[str, Any]]) -> list[Chart]:
    """The charts of an evaluation, as far as there are curves for them.

    Args:
        curves: by system, the model first. `similarity` and `tolerance` are (x, y) points, of which every system that
            has any has a line; of the model alone, `reliability` has bins (`probability`, `positives`) by head,
            `precision_recall` lists (`recall`, `precision`, `share`) by head, and `sweep` points (`threshold`, `f1`,
            `precision`, `recall`) by decision and data set.
    """
    own = next(iter(curves.values()), {})
    lines = {name: _of_systems(curves, name) for name in ("similarity", "tolerance")}
    charts = [
        Chart("Turn F1 over the similarity that a match needs", "similarity", lines["similarity"]),
        Chart("Utterances in time", "seconds of tolerance", lines["tolerance"]),
        *(
            Chart(f"Reliability of p_{head}", "probability", (_line("share of positives", bins, *_BIN),), diagonal=True)
            for head, bins in own.get("reliability", {}).items()
        ),
        *(
            Chart(f"Precision and recall of p_{head}", "recall", (_columns("precision", found),), _share(found))
            for head, found in own.get("precision_recall", {}).items()
        ),
        *(
            Chart(f"Threshold of {decides}, {'all' if dataset == DEFAULT else dataset}", "threshold", _sweep(points))
            for decides, datasets in own.get("sweep", {}).items()
            for dataset, points in datasets.items()
            if dataset == DEFAULT or len(datasets) > 2  # of one data set the sum is itself
        ),
    ]
    kept = (replace(chart, lines=tuple(line for line in chart.lines if line.points)) for chart in charts)
    return [chart for chart in kept if chart.lines]


_BIN = ("probability", "positives")


def _of_systems(curves: Mapping[str, Mapping[str, Any]], name: str) -> tuple[Line, ...]:
    """One line a system, without those that are 0 everywhere."""
    lines = (Line(system, _defined(found.get(name, ()))) for system, found in curves.items())
    return tuple(line for line in lines if any(y for _, y in line.points))[:MOST_LINES]


def _line(name: str, rows: Sequence[Mapping[str, float | None]], across: str, up: str) -> Line:
    return Line(name, _defined([(row[across], row[up]) for row in rows]))


def _columns(name: str, found: Mapping[str, Sequence[float | None]]) -> Line:
    return Line(name, _defined([*zip(found.get("recall", ()), found.get(name, ()), strict=True)]))


def _sweep(points: Sequence[Mapping[str, float | None]]) -> tuple[Line, ...]:
    return tuple(_line(words(part), points, "threshold", part) for part in ("f1", "precision", "recall"))


def _share(found: Mapping[str, Sequence[float]]) -> float | None:
    """Precision of guessing at random."""
    return next(iter(found.get("share", ())), None)


def _defined(points: Sequence[tuple[float | None, float | None]]) -> tuple[tuple[float, float], ...]:
    known = ((x, y) for x, y in points if x is not None and y is not None)
    return tuple((float(x), float(y)) for x, y in known if not (math.isnan(x) or math.isnan(y)))
