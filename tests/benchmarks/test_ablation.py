"""suite=ablation: what is compared, how it is compared, and that it continues."""

import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from prospect.benchmarks.ablation.report import RunScores, compare, plot, render
from prospect.benchmarks.ablation.variants import VARIANTS, changed, plan_runs
from prospect.benchmarks.config import BenchmarkConfig
from prospect.benchmarks.settings import Ablated, AblationSuite
from prospect.config.load import load
from prospect.config.schema import Config
from prospect.evaluation.intervals import draw_runs
from prospect.evaluation.metrics import METRICS
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.tally import Tally
from prospect.training.events import training_seconds
from tests.conftest import REPOSITORY

SETTINGS = EvaluationSettings(bootstrap_samples=400)
SMALL = ["max_steps=2", "corpus.num_train=12", "corpus.num_validation=2", "corpus.num_test=2"]


def planned(root: Path, *overrides: str) -> dict[tuple[Ablated, int], Config]:
    config = load("benchmark", ["suite=ablation", f"storage.root={root}", *overrides], BenchmarkConfig)
    assert isinstance(config.suite, AblationSuite)
    return {(run.name, run.seed): run.config for run in plan_runs(config, config.suite)}


def test_every_configuration_differs_in_its_factor_alone(tmp_path: Path) -> None:
    runs = planned(tmp_path)
    assert len(runs) == len({config.training.run_name for config in runs.values()}) == 10 * 3
    base = runs["reference", 0]
    assert (base.training.sampling.negative_rate, base.training.losses.decision) == (0.1, "balanced")
    assert base.corpus.shuffle_places
    assert base.model.name == "prospect-dst-ablation", "a model that is compared is never the one that serves"
    for (name, seed), config in runs.items():
        seeds = {f"training.{part}seed": seed for part in ("", "sampling.", "clips.")}
        named = {"training.run_name": config.training.run_name}
        assert config == changed(base, {**VARIANTS[name].changes, **seeds, **named})
        assert (config == base) == ((name, seed) == ("reference", 0))


def test_other_settings_give_other_runs_and_other_corpora_other_folders(tmp_path: Path) -> None:
    base = planned(tmp_path)["reference", 0]
    longer = planned(tmp_path, "suite.max_steps=777")["reference", 0]
    other = planned(tmp_path, "suite.corpus.seed=7")["reference", 0]
    assert longer.training.run_name != base.training.run_name
    assert (longer.storage.root == base.storage.root, other.storage.root == base.storage.root) == (True, False)


def tally(right: float) -> Tally:
    counts = {"dialogues": 1, "state_frames": 100, "state_right": right, "generated": 4, "reference": 5}
    counts |= {"correct": 3, "paired": 4, "events_matched": 0, "events_generated": 0, "events_reference": 0}
    return Tally.of(counts)


def scored(name: Ablated, seed: int, shift: float, noise: float = 0.0, videos: int = 30) -> RunScores:
    """Videos differ a lot, in the same way for everybody."""
    rng, own = np.random.default_rng(1), np.random.default_rng([seed, len(name)])
    right = {f"v{n}": tally(rng.uniform(0, 60) + shift + own.normal(0, noise)) for n in range(videos)}
    return RunScores(name, seed, 2.0, {"own": right, "written": right})


def test_differences_are_paired_over_videos() -> None:
    names: tuple[Ablated, ...] = ("reference", "focal", "rho_1")
    shifts = dict(zip(names, (20.0, 15.0, 20.0), strict=True))
    found = compare([scored(name, seed, shifts[name], noise=1) for name in names for seed in (0, 1, 2)], SETTINGS)
    mean, worse, same = (
        found.means["reference"]["goal accuracy"],
        found.differences["focal"]["goal accuracy"],
        found.differences["rho_1"]["goal accuracy"],
    )
    assert mean
    assert worse
    assert same
    assert mean.high - mean.low > 0.08, "videos differ by much more than the configurations"
    assert worse.low < worse.value < worse.high < 0
    assert same.low < 0 < same.high
    assert found.differences["focal"]["DST F1"] is None, "undefined without transitions, and neither 0 nor 1"
    assert found.means["reference"]["speak precision"] == replace(mean, value=1.0, low=1.0, high=1.0)
    assert found.seeds["focal"] == [0, 1, 2]


def test_intervals_hold_the_seeds_too() -> None:
    """Videos all alike: what is left is how trainings differ."""
    runs = [{f"v{n}": tally(right) for n in range(20)} for right in (20, 50, 80)]
    value, drawn = draw_runs(METRICS["joint_goal_accuracy"], runs, 500, 0, 1)
    assert value == pytest.approx(0.5)
    assert (drawn.min(), drawn.max()) == (pytest.approx(0.2), pytest.approx(0.8))
    _, alone = draw_runs(METRICS["joint_goal_accuracy"], runs[:1], 500, 0, 1)
    assert alone.std() < 1e-9


def test_the_tables_are_markdown_and_the_plot_has_a_line_for_each() -> None:
    unfinished = [scored("reference", 0, 20), scored("reference", 1, 20), scored("no_recipe", 0, 0)]
    found = compare(unfinished, SETTINGS)
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(*render(found, 0.95))
    lines = console.export_text().splitlines()
    assert sum(line.startswith("| no recipe") for line in lines) == 2
    assert any("**-0.200 [" in line for line in lines)
    figure = plot(found)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["no recipe"]
    assert render(compare(unfinished[2:], SETTINGS), 0.95)[0].row_count == 1, "without a reference there is one table"


def test_training_time_leaves_out_the_time_between_a_death_and_the_next_start() -> None:
    events = [("start", 0), ("step", 10), ("step", 20), ("start", 500), ("step", 510), ("done", 512)]
    assert training_seconds({"kind": kind, "time": time} for kind, time in events) == 32


@contextmanager
def suite(root: Path) -> Iterator[subprocess.Popen[str]]:
    """One run of two steps; its process ends with the suite's, whatever that ends of."""
    settings = [f"suite.{each}" for each in (*SMALL, "seeds=[0]", "configurations=[no_recipe]")]
    settings.append("training.warmup_steps=1")
    settings += [f"storage.root={root}", "training.calibration.enabled=false"]
    command = [sys.executable, "-u", "jobs/benchmark.py", "suite=ablation", *settings]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.e2e
@pytest.mark.long
def test_the_suite_continues_after_it_was_killed(tmp_path: Path) -> None:
    """Killed once it trains; started again, it is scored."""
    with suite(tmp_path) as process:
        while process.poll() is None and not list(tmp_path.glob("benchmarks/ablation/*/runs/*/metrics.jsonl")):
            time.sleep(0.1)
        assert process.poll() is None, process.communicate()[0]

    with suite(tmp_path) as process:
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert "videos skipped" not in printed, "the corpus is embedded already"
    result = json.loads((tmp_path / "benchmarks" / "ablation.json").read_text())
    assert result["seeds"] == {"no_recipe": [0]}
    assert result["means"]["no_recipe"]["goal accuracy"]["value"] >= 0
