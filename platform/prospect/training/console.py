"""A training run in the terminal: a progress bar or plain lines while it runs, and a summary table at the end."""

import io
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

from rich import box
from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from prospect.training.events import RunEvent, drop_repeats, training_seconds
from prospect.training.result import TrainResult

Write = Callable[[str], None]

_SHOWN = ("loss", "speak_f1", "update_f1", "state_accuracy", "stream_turn_f1", "stream_joint_goal_accuracy")
"""Losses and scores of a validation that are printed."""
RECENT_STEPS = 20
"""Steps over which the bar averages speed and time left."""


def console_for(every: int, write: Write = print) -> "LineConsole":
    """A progress bar where standard output is a terminal, otherwise a line every `every` steps."""
    terminal = Terminal()
    live = sys.stdout.isatty() and not terminal.is_dumb_terminal
    return LiveConsole(every, write, terminal) if live else LineConsole(every, write)


class LineConsole:
    """Prints a line every `every` steps, and one for every other event."""

    def __init__(self, every: int, write: Write = print) -> None:
        self._every, self._write = every, write
        self._total = 0
        self._since = (time.time(), 0, 0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to clean up."""

    def __call__(self, event: RunEvent) -> None:
        text = getattr(self, f"_{event['kind']}")(event)
        if text:
            self._write(f"train  {text}")

    def _start(self, event: RunEvent) -> str:
        self._total = event["total_steps"]
        self._since = (event["time"], event["step"], 0, 0)
        where = f"{event['workers']} {'GPU' if event['gpu'] else 'CPU'} worker{'s' if event['workers'] > 1 else ''}"
        begin = f"{self._total} steps" if event["step"] == 0 else f"resumed at step {event['step']} of {self._total}"
        return f"{begin} on {where}, {event['clips']} clips, {event['parameters'] / 1e6:.1f} M trainable"

    def _step(self, event: RunEvent) -> str:
        then, first, clips, tokens = self._since
        clips, tokens, done = clips + event["clips"], tokens + event["tokens"], event["step"] + 1
        self._since = (then, first, clips, tokens)
        if done % self._every and done != self._total:
            return ""
        seconds = max(event["time"] - then, 1e-3)
        left = (self._total - done) * seconds / max(done - first, 1)
        self._since = (event["time"], done, 0, 0)
        parts = "  ".join(f"{name} {value:.3f}" for name, value in event["parts"].items())
        return (
            f"step {done}/{self._total}  loss {event['loss']:.3f}  ({parts})  "
            f"{clips / seconds:.1f} clips/s  {tokens / seconds:,.0f} tokens/s  {format_duration(left)} left"
        )

    def _validation(self, event: RunEvent) -> str:
        scores = {name: value for name, value in event.get("scores", {}).items() if name in _SHOWN}
        parts = "  ".join(f"{name} {value:.3f}" for name, value in {**event.get("losses", {}), **scores}.items())
        return f"validation after step {event['step'] + 1}  {parts}"

    _streaming = _validation

    def _checkpoint(self, event: RunEvent) -> str:
        return ""

    def _failure(self, event: RunEvent) -> str:
        failed = "a worker" if event["workers"] == 1 else f"{event['workers']} workers"
        return f"{failed} failed after step {event['step']}: {event['reason']}"

    def _warning(self, event: RunEvent) -> str:
        return str(event["message"])

    _calibration = _warning

    def _stopped(self, event: RunEvent) -> str:
        return f"stopped early; the model will have the weights of step {event['best_step']}"

    def _done(self, event: RunEvent) -> str:
        done, kept = event["step"], event["model_step"]
        return f"finished after {done} steps" + (f"; the model has the weights of step {kept}" if kept != done else "")


class LiveConsole(LineConsole):
    """A progress bar that moves with every step; other events are lines above it."""

    def __init__(self, every: int, write: Write, terminal: Terminal) -> None:
        super().__init__(every, write)
        columns = (
            TextColumn("train "),
            BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
        )
        self._progress = Progress(*columns, console=terminal, refresh_per_second=4, expand=True)
        self._task = self._progress.add_task("", total=None, numbers="starting workers")
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT_STEPS)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the bar, which shows the cursor again."""
        self._progress.stop()

    def _start(self, event: RunEvent) -> str:
        text = super()._start(event)
        self._recent.clear()
        self._progress.reset(self._task, total=self._total, completed=event["step"], numbers="")
        return text

    def _done(self, event: RunEvent) -> str:
        self._progress.update(self._task, numbers="")
        return super()._done(event)

    def _step(self, event: RunEvent) -> str:
        self._recent.append((event["seconds"], event["tokens"]))
        done, seconds = event["step"] + 1, sum(seconds for seconds, _ in self._recent)
        speed = sum(tokens for _, tokens in self._recent) / max(seconds, 1e-3)
        left = format_duration((self._total - done) * seconds / len(self._recent))
        after = f"{left} left" if done < self._total else "finishing"
        numbers = f"loss {event['loss']:.3f}  {speed:,.0f} tokens/s  {after}"
        self._progress.update(self._task, completed=done, numbers=numbers)
        return ""


def format_duration(seconds: float) -> str:
    """`M:SS`, or `H:MM:SS` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def write_table(table: Table, write: Write, width: int = 100) -> None:
    """Write a table as plain lines."""
    text = io.StringIO()
    Terminal(file=text, width=width).print(table)
    for line in text.getvalue().splitlines():
        write(line.rstrip())


def summary_table(result: TrainResult, events: Sequence[RunEvent]) -> Table:
    """Steps, speed, losses, scores and paths of a finished run.

    Args:
        result: of the run.
        events: of the run; a step that was repeated after a restart counts once.
    """
    steps = [event for event in drop_repeats(events) if event["kind"] == "step"]
    tokens, computing = (sum(event.get(name, 0) for event in steps) for name in ("tokens", "seconds"))
    early = f", with the weights of step {result.model_step:,}" if result.model_step != result.steps else ""
    rows = {
        "steps": f"{result.steps:,} in {format_duration(training_seconds(events))}",
        "tokens": f"{tokens:,}, {tokens / max(computing, 1e-3):,.0f}/s",
        "loss": f"{result.first_loss:.3f} -> {result.last_loss:.3f}",
        "validation": "  ".join(
            f"{name} {result.validation[name]:.3f}" for name in _SHOWN if name in result.validation
        ),
        "left out": f"{result.quarantined} records or events" if result.quarantined else "",
        "model": f"{result.model}{early}",
        "checkpoints": str(result.model.parent / "checkpoints"),
        "registered as": f"models:/{result.name}/{result.version}",
        "MLflow run": result.mlflow_run,
    }
    table = Table(title=f"Run {result.run_name}", box=box.SIMPLE_HEAD, show_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows.items():
        if value:
            table.add_row(label, value)
    return table
