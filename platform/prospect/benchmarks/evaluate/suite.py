"""suite=evaluate: the parts of an evaluation, in stages; each is an entry of `STAGES`, and its rows are its table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from prospect.benchmarks.config import BenchmarkConfig
from prospect.benchmarks.evaluate.encoder import measure_encoder
from prospect.benchmarks.evaluate.matcher import measure_matcher
from prospect.benchmarks.evaluate.settings import EvaluateSuite, Stage
from prospect.benchmarks.evaluate.streaming import measure_streaming, table
from prospect.benchmarks.journal import Add, Journal, StageResult
from prospect.errors import ConfigError
from prospect.machine import describe_machine
from prospect.tracking.code_version import code_version

Measure = Callable[[BenchmarkConfig, EvaluateSuite, Add], None]


def _measure_streaming(config: BenchmarkConfig, suite: EvaluateSuite, add: Add) -> None:
    for row in measure_streaming(suite.streaming, config.streaming, Path(config.storage.root) / "cache"):
        add(row)


def _print_markdown(rows: list[StageResult]) -> None:
    print(to_markdown(rows), flush=True)


def _print_streaming(rows: list[StageResult]) -> None:
    Console(width=150).print(table(rows))


STAGES: dict[Stage, tuple[str, Measure, Callable[[list[StageResult]], None]]] = {
    "encoder": ("Sentence vectors, rounds of {sentences} sentences", measure_encoder, _print_markdown),
    "matcher": (
        "Turn matcher, {videos} videos of {frames} frames with {utterances} utterances",
        measure_matcher,
        _print_markdown,
    ),
    "streaming": ("Streaming", _measure_streaming, _print_streaming),
}
"""Title of a stage's table, with the suite's settings in braces, what measures it and what prints its rows."""


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Print a table a stage, write `benchmarks/evaluate.json` below the storage root, and return what it wrote.

    Raises:
        ConfigError: another suite is configured, or the sentence encoder is missing.
    """
    suite = config.suite
    if not isinstance(suite, EvaluateSuite):
        raise ConfigError("`suite` must be evaluate for this benchmark.", field="suite")
    code = code_version()
    machine, settings = describe_machine("cpu"), suite.model_dump(mode="json")
    commit = code.commit if code else "unknown"
    head = {"benchmark": "evaluate", "commit": commit, "machine": machine, "suite": settings}
    print(f"{machine['device']}, {machine['cores']} cores, load average {machine['load_average']:.1f} before")
    stages: list[Stage] = [stage for stage in get_args(Stage) if stage in suite.stages]
    journal = Journal.begin_run(Path(config.storage.root) / "benchmarks" / "evaluate.json", head, stages)
    for stage in stages:
        title, measure, show = STAGES[stage]
        journal.begin(stage)
        measure(config, suite, lambda row, stage=stage: journal.add(stage, row))  # type: ignore[misc]
        journal.end(stage)
        print(f"\n{title.format(**settings)}\n", flush=True)
        show(journal.stage(stage)["rows"])
    print(f"\nbenchmark written to {journal.file}")
    return journal.content


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """A table with a column for each key of the first row."""
    cells = [list(rows[0]), ["---"] * len(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 0.1 else f"{value:.1f}"
    return str(value)
