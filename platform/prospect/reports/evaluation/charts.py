"""Curves of an evaluation as charts that a page draws as SVG, in the colours of its theme."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prospect.reports.evaluation.words import words

WIDTH, HEIGHT = 340, 220
"""Of a chart's picture, px."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 10, 8, 34
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
    diagonal: bool = False
    """Whether the line of perfect agreement is drawn."""

    @property
    def _wide(self) -> tuple[float, float]:
        values = [x for line in self.lines for x, _ in line.points]
        low, high = min(values), max(values)
        shares = low >= 0 and high <= 1
        return (0.0, 1.0) if shares else (min(low, 0.0), high if high > low else low + 1)

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
    scale = 10.0 ** _floor_log10(rough)
    step = next(scale * nice for nice in _NICE if scale * nice >= rough * 0.999)
    first = -(-low // step) * step
    return [first + step * number for number in range(int((high - first) / step + 1.001))]


def _floor_log10(value: float) -> int:
    return int(f"{value:e}".partition("e")[2])


def charts_of(curves: Mapping[str, Any]) -> list[Chart]:
    """A chart for every curve: a mapping of equally long lists, the first of which is the horizontal axis.

    Lists of counts are left out of the picture, points without a value are too. A reliability curve gets the line of
    perfect agreement.
    """
    charts = []
    for name, curve in curves.items():
        columns = {key: values for key, values in curve.items() if _is_column(values)}
        axis, *others = columns or [""]
        lines = tuple(
            line for key in others if key not in _COUNTS and (line := _line(key, columns[axis], columns[key])).points
        )
        if lines:
            charts.append(Chart(words(name), words(axis), lines, "reliability" in name or "calibration" in name))
    return charts


_COUNTS = frozenset({"count", "counts", "frames", "events", "labels", "positives", "threshold", "thresholds"})
"""Columns that say how sure a point is, or where it comes from; as an axis (the first column) they are drawn."""


def _is_column(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0


def _line(name: str, across: Sequence[float | None], up: Sequence[float | None]) -> Line:
    points = tuple((float(x), float(y)) for x, y in zip(across, up, strict=False) if x is not None and y is not None)
    return Line(words(name), points)
