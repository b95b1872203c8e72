"""A training run in MLflow: parameters, data sets, metrics, reports, the registered model and failures."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prospect.cluster.common import ReportLine
from prospect.config.schema import Config
from prospect.messages import first_line
from prospect.reports.curves import plot_run
from prospect.streaming import table
from prospect.tracking.pyfunc import ModelInterface
from prospect.tracking.retry import retry_until_available
from prospect.tracking.run import DatasetCard, TrackedRun
from prospect.tracking.settings import TrackingError
from prospect.tracking.tracking import Tracking
from prospect.training.events import RunEvent, drop_repeats, read_events
from prospect.training.metrics import failure_tag, metric_rows, run_tags, threshold_metrics, validation_metrics

PARAMETERS = ("training", "model", "context", "data", "vision")
"""Sections of the configuration by which runs are compared; `config.json` has all."""

INTERFACE = ModelInterface("prospect.streaming.table", table.INPUTS, table.OUTPUTS, table.PARAMETERS, table.PACKAGES)

_DESCRIBED = ("loss", "speak_f1", "update_f1", "state_accuracy", "stream_turn_f1", "stream_joint_goal_accuracy")
"""Scores of a validation that a run's description names."""

_REPORTS = ("calibration.json", "curves.json", "quarantine.jsonl")
"""Files of the run's folder that are uploaded with its plots."""

_CONTEXTS = {"train": "training", "validation": "validation"}
"""MLflow's words for what a run does with a split."""


def open_run(tracking: Tracking, config: Config, folder: Path, manifest: dict[str, Any]) -> TrackedRun:
    """Open the MLflow run, and log everything that is known before the first step."""
    tags = {"records": manifest["records"], "embeddings": manifest["embeddings"], "folder": str(folder)}
    whole = config.model_dump(mode="json")
    parameters = {section: whole[section] for section in PARAMETERS}
    parameters["training"] = config.training.model_dump(mode="json", exclude={"run_name"})  # the run's own name
    run = tracking.open_run(folder, config.training.run_name, config=whole, parameters=parameters, tags=tags)
    run.log_json(manifest, "dataset.json")
    run.log_datasets(
        DatasetCard(f"{name}/{split}", manifest["records"], str(config.data.path), _CONTEXTS[split], counts)
        for name, splits in manifest["datasets"].items()
        for split, counts in splits.items()
    )
    return run


def upload_events(run: TrackedRun, events: Sequence[RunEvent]) -> None:
    """Log metrics and tags of a batch of events; logging a batch again changes nothing."""
    run.log_history(metric_rows(events))
    if tags := run_tags(events):
        run.set_tags(tags)


def upload_reports(run: TrackedRun, folder: Path, step: int, report: ReportLine) -> None:
    """Plot a finished run and upload plots, reports and thresholds; the model has the weights of `step`."""
    pictures = plot_run(folder, drop_repeats(event for event, _ in read_events(folder / "metrics.jsonl")))
    files = [file for name in _REPORTS if (file := folder / name).is_file()]
    calibration = folder / "calibration.json"
    chosen = json.loads(calibration.read_text())["thresholds"] if calibration.is_file() else {}
    rows = [(max(step - 1, 0), time.time(), threshold_metrics(chosen))]

    def upload() -> None:
        for picture in pictures:
            run.log_file(picture, "plots")
        for file in files:
            run.log_file(file)
        run.log_history(rows)

    retry_until_available(upload, report)


def describe(manifest: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """One sentence on data, steps and scores, for the pages of the run and of the model's version."""
    data = [
        f"{counts['videos']:,} videos of {name} ({counts['clips']:,} clips)"
        for name, splits in manifest["datasets"].items()
        if (counts := splits.get("train"))
    ]
    found = summary["validation"]
    shown = [f"{name.replace('_', ' ')} {found[name]:.3f}" for name in _DESCRIBED if name in found]
    scores = f"; on validation {', '.join(shown)}" if shown else ""
    losses = f"loss {summary['first_loss']:.2f} to {summary['last_loss']:.2f}"
    return f"{', '.join(data)}; {summary['step']:,} steps, {losses}; weights of step {summary['model_step']:,}{scores}."


def register(
    tracking: Tracking, name: str, run: TrackedRun, folder: Path, summary: Mapping[str, Any], about: str
) -> int:
    """Register the model with the step and validation of its weights; returns its version."""
    step = summary["model_step"]
    tags = {
        "step": str(step),
        **{name: f"{value:.6g}" for name, value in validation_metrics(summary["validation"]).items()},
    }
    return tracking.register(name, run, folder, INTERFACE, step, tags, about)


@contextlib.contextmanager
def record_failure(run: TrackedRun, report: ReportLine) -> Iterator[None]:
    """Give the MLflow run the status and reason of an exception; an unreachable server does not replace it."""
    try:
        yield
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        reason = failure_tag(time.time(), first_line(error))
        try:
            retry_until_available(lambda: _end_failed(run, status, reason), report, seconds=10)
        except TrackingError as away:
            report(f"train  {away}")
        raise


def _end_failed(run: TrackedRun, status: str, tags: dict[str, str]) -> None:
    run.set_tags(tags)
    run.finish(status)
