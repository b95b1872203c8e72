"""Two evaluations side by side: a table for a terminal, and one HTML page that opens from disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from prospect.evaluation.comparison import Comparison, MetricDifference
from prospect.evaluation.lineage import counted
from prospect.evaluation.predictions import Predictions
from prospect.files import write_text
from prospect.reports.evaluation.page import HEADLINES, environment
from prospect.reports.evaluation.words import number, words


@dataclass(frozen=True)
class ComparisonPage:
    """Content of the page."""

    comparison: Comparison
    names: tuple[str, str]
    about: str
    marks: Sequence[str]
    draws: int

    @property
    def columns(self) -> list[str]:
        """Metrics of the list of videos."""
        known = {row.name for row in self.comparison.metrics if row.first is not None or row.second is not None}
        return [name for name in HEADLINES if name in known]


def names_of(comparison: Comparison) -> tuple[str, str]:
    """What tells the two apart in the fewest words: run, model, or the results' keys."""
    both = comparison.first, comparison.second
    for name in (_run, lambda each: each.lineage.model, lambda each: f"{_run(each)} {each.lineage.key}"):
        first, second = map(name, both)
        if first != second:
            return first, second
    return f"{first} (A)", f"{second} (B)"


def _run(predictions: Predictions) -> str:
    return str(predictions.manifest.get("run_name", predictions.lineage.model))


def comparison_table(comparison: Comparison) -> Table:
    """One row a metric that either has; `*` where the interval of the difference excludes zero.

    Libraries and tokenizers of the scores of words stand on the page: a terminal has no room for them.
    """
    first, second = names_of(comparison)
    caption = f"difference: {second} less {first}, paired by video; *: its interval excludes zero"
    lineage = comparison.first.lineage
    table = Table(title=f"{lineage.split}, {lineage.count}", caption=caption, box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("metric", no_wrap=True)
    for name in (first, second, "difference", "interval"):
        table.add_column(name, justify="right", overflow="fold")
    for row in comparison.metrics:
        if row.first is not None or row.second is not None:
            table.add_row(words(row.name.partition(" (")[0]), number(row.first), number(row.second), *_told(row))
    return table


def _told(row: MetricDifference) -> tuple[str, str]:
    if row.interval is None:
        known = row.first is not None and row.second is not None
        return (f"{(row.second or 0.0) - (row.first or 0.0):+.3f}" if known else "-"), "-"
    mark = " *" if row.is_certain else "  "
    return f"{row.interval.value:+.3f}{mark}", f"{row.interval.low:+.3f} {row.interval.high:+.3f}"


def write_comparison(file: Path, comparison: Comparison, draws: int) -> Path:
    """Write the page; `draws` is the number of bootstrap samples."""
    lineage = comparison.first.lineage
    names = names_of(comparison)
    marks = [
        f"{name}: {mark}"
        for name, each in zip(names, (comparison.first, comparison.second), strict=True)
        for mark in each.lineage.marks()
    ]
    about = f"{counted(lineage.dialogues, 'dialogue')} of {lineage.count} of {lineage.split}"
    page = ComparisonPage(comparison, names, about, marks, draws)
    write_text(file, environment().get_template("comparison.html").render(page=page))
    return file
