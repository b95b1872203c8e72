"""The comparison of suite=ablation: means over seeds, differences to the reference, a table and a plot."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from prospect.benchmarks.ablation.variants import VARIANTS, Pass
from prospect.benchmarks.settings import Ablated, AblationSuite
from prospect.config.schema import Config
from prospect.evaluation.intervals import Interval, draw_runs, percentile_interval
from prospect.evaluation.metrics import METRICS
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.tally import Floats, Ratio, Tally
from prospect.files import write_json
from prospect.hashing import derived_seed

WIDTH = 220


@dataclass(frozen=True)
class Measure:
    """A column of the table: one metric of one pass."""

    metric: Ratio
    streamed: Pass = "own"


MEASURES = {
    "goal accuracy": Measure(METRICS["joint_goal_accuracy"]),
    "goal accuracy, written": Measure(METRICS["joint_goal_accuracy"], "written"),
    "DST F1": Measure(METRICS["dst_f1"]),
    "turn F1": Measure(METRICS["turn_f1"]),
    "speak precision": Measure(lambda tally: 1 - METRICS["redundant_rate"](tally)),
    "speak recall": Measure(lambda tally: 1 - METRICS["missing_rate"](tally)),
}
"""`speak` scores the time of utterances, not their text: utterances that the matcher paired."""


@dataclass(frozen=True)
class RunScores:
    """One finished run: each video's sums, by pass."""

    name: Ablated
    seed: int
    minutes: float
    videos: Mapping[Pass, Mapping[str, Tally]]

    def tallies(self, measure: Measure) -> Mapping[str, Tally]:
        return self.videos[measure.streamed]

    @property
    def metrics(self) -> dict[str, float]:
        """All of `MEASURES` over all videos."""
        return {
            name: float(measure.metric(Tally.total(self.tallies(measure).values())))
            for name, measure in MEASURES.items()
        }


def read_scores(file: Path) -> RunScores:
    values: dict[str, Any] = json.loads(file.read_text())
    videos: dict[Pass, dict[str, Tally]] = {
        streamed: {name: Tally.of(sums) for name, sums in scores["videos"].items()}
        for streamed, scores in values["scores"].items()
    }
    return RunScores(values["configuration"], values["seed"], values["minutes"], videos)


@dataclass(frozen=True)
class Comparison:
    """By configuration and measure; None where undefined.

    Attributes:
        means: over the seeds.
        differences: to the reference, the same videos for both, seeds for each by itself; empty without a reference.
        minutes: of training, mean over the seeds.
        seeds: those that are finished.
    """

    means: dict[Ablated, dict[str, Interval | None]]
    differences: dict[Ablated, dict[str, Interval | None]]
    minutes: dict[Ablated, float]
    seeds: dict[Ablated, list[int]]


def compare(runs: Sequence[RunScores], settings: EvaluationSettings) -> Comparison:
    """Means and differences with bootstrap intervals over videos and seeds."""
    groups: dict[Ablated, list[RunScores]] = defaultdict(list)
    for run in sorted(runs, key=lambda each: (list(VARIANTS).index(each.name), each.seed)):
        groups[run.name].append(run)
    drawn = {name: _draw(name, group, settings) for name, group in groups.items()}

    def interval(value: Floats, samples: Floats) -> Interval | None:
        return percentile_interval(value, samples, settings.confidence)

    base = drawn.get("reference", {})
    return Comparison(
        means={name: {m: interval(*pair) for m, pair in found.items()} for name, found in drawn.items()},
        differences={
            name: {m: interval(found[m][0] - base[m][0], found[m][1] - base[m][1]) for m in base}
            for name, found in drawn.items()
            if base and name != "reference"
        },
        minutes={name: float(np.mean([run.minutes for run in group])) for name, group in groups.items()},
        seeds={name: [run.seed for run in group] for name, group in groups.items()},
    )


def _draw(name: Ablated, group: Sequence[RunScores], settings: EvaluationSettings) -> dict[str, tuple[Floats, Floats]]:
    seeds = settings.seed, derived_seed("ablation", settings.seed, name)
    return {
        label: draw_runs(measure.metric, [run.tallies(measure) for run in group], settings.bootstrap_samples, *seeds)
        for label, measure in MEASURES.items()
    }


def is_clear(difference: Interval) -> bool:
    """Whether its interval excludes 0."""
    return difference.low > 0 or difference.high < 0


def render(found: Comparison, confidence: float) -> list[Table]:
    """The means, and the differences to the reference."""
    about = f"{confidence:.0%} intervals over videos and seeds"
    means = _table(f"Means over seeds, {about}", [*MEASURES, "trained, min", "seeds"])
    for name, intervals in found.means.items():
        cells = [str(each or "-") for each in intervals.values()]
        means.add_row(VARIANTS[name].label, *cells, f"{found.minutes[name]:.1f}", str(len(found.seeds[name])))
    differences = _table(f"Less the reference, {about}; bold: excludes 0", list(MEASURES))
    for name, intervals in found.differences.items():
        differences.add_row(VARIANTS[name].label, *(_difference(each) for each in intervals.values()))
    return [means, differences] if found.differences else [means]


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    table.add_column("configuration", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _difference(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    text = f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"**{text}**" if is_clear(interval) else text


def plot(found: Comparison) -> Figure:
    """A panel for each measure, a line for each configuration: its difference to the reference and the interval."""
    rows = -(-len(MEASURES) // 3)
    figure = Figure(figsize=(11, rows * (0.3 * len(found.differences) + 0.8) + 0.4), layout="constrained")
    panels = figure.subplots(rows, 3, sharey=True).flat
    labels = [VARIANTS[name].label for name in found.differences]
    for panel, measure in zip(panels, MEASURES, strict=True):
        panel.axvline(0, color="grey", linewidth=0.8)
        for row, intervals in enumerate(found.differences.values()):
            if (interval := intervals[measure]) is not None:
                color = "tab:blue" if is_clear(interval) else "silver"
                panel.plot([interval.low, interval.high], [row, row], color=color, linewidth=2)
                panel.plot(interval.value, row, "o", color=color)
        panel.set_title(measure, fontsize=10)
        panel.tick_params(labelsize=9)
        panel.locator_params(axis="x", nbins=5)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    figure.supxlabel("less the reference; blue where the interval excludes 0", fontsize=9)
    return figure


def write_report(
    runs: Sequence[RunScores], shared: Config, suite: AblationSuite, target: Path, report: Callable[[str], None]
) -> Comparison:
    """Print the tables, and write `target` as JSON, as Markdown and as a plot of the differences."""
    found = compare(runs, shared.evaluation)
    tables = render(found, shared.evaluation.confidence)
    Console(width=WIDTH).print(*tables)
    with target.with_suffix(".md").open("w") as file:
        Console(file=file, width=WIDTH).print(*tables)
    values = {"suite": suite.model_dump(mode="json"), "root": shared.storage.root, **asdict(found)}
    write_json(target.with_suffix(".json"), values)
    written = [".json", ".md"]
    if found.differences:
        plot(found).savefig(target.with_suffix(".png"), dpi=120)
        written.append(".png")
    report(f"ablation  written to {', '.join(f'{target}{suffix}' for suffix in written)}")
    return found
