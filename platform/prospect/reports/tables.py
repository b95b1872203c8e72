"""Tables for a terminal of 80 columns."""

from collections.abc import Callable, Mapping

from rich import box
from rich.table import Table
from rich.text import Text

from prospect.evaluation.metrics import Scores, SliceScores

_UNDEFINED = "-"


def _number(metric: str, digits: int = 2) -> Callable[[SliceScores], str | Text]:
    def cell(scores: SliceScores) -> str:
        value = scores[metric]
        return _UNDEFINED if value is None else f"{value:.{digits}f}"

    return cell


def _with_interval(metric: str) -> Callable[[SliceScores], str | Text]:
    """A value with its dimmed interval below it; beside it, four columns would not fit a terminal."""

    def cell(scores: SliceScores) -> str | Text:
        interval = scores.intervals[metric]
        if interval is None:
            return _UNDEFINED
        return Text.assemble(f"{interval.value:.2f}\n", (f"{interval.low:.2f}-{interval.high:.2f}", "dim"))

    return cell


_COLUMNS: dict[str, Callable[[SliceScores], str | Text]] = {
    "words": _number("content_f1"),
    "turn F1": _with_interval("turn_f1"),
    "step": _number("step_correctness"),
    "off s": _number("time_diff"),
    "DST F1": _with_interval("dst_f1"),
    "goal acc.": _with_interval("joint_goal_accuracy"),
    "/min": _number("utterances_per_minute", 1),
}


def _rank(scores: SliceScores) -> tuple[float, float]:
    return scores["content_f1"] or 0.0, scores["turn_f1"] or 0.0


def render_table(rows: Mapping[str, Scores], title: str = "Held-out videos") -> Table:
    """One entry a system, best words first, and without words to compare best turn F1 first.

    `words` is the turn F1 that counts an utterance as right only where it names the reference's objects, actions and
    tools (sample corpus), `step` the share of utterances about a step that name a relevant one, `off s` the mean time
    between an utterance and its reference, `goal acc.` the joint goal accuracy of the tracked state, `/min` utterances
    a minute; `-` is undefined.
    """
    caption = "below a score: its confidence interval over videos"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("system", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for system, scores in sorted(rows.items(), key=lambda row: _rank(row[1].overall), reverse=True):
        table.add_row(system, *(cell(scores.overall) for cell in _COLUMNS.values()))
    return table
