"""Turns a run's events into the tracker's metrics and tags (docs/training.md has the table of names)."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from prospect.escape import metric_part
from prospect.model.settings import LOSS_PARTS
from prospect.training.events import RunEvent

MetricRow = tuple[int, float, dict[str, float]]
"""(step, seconds since 1970, values by name)."""


def metric_rows(events: Sequence[RunEvent]) -> list[MetricRow]:
    """Rows under stable grouped names: `train/loss`, `train/loss_speak`, `speed/tokens_per_second`, ...

    Steps count from 0; an event between two steps gets the step before it, a start the step after it.
    """
    rows = []
    for event in events:
        make = _ROWS.get(event["kind"])
        if make is not None:
            step, values = make(event)
            rows.append((step, event["time"], values))
    return rows


def run_tags(events: Sequence[RunEvent]) -> dict[str, str]:
    """The newest checkpoint's folder, failures by time, and the step whose weights an early stop keeps."""
    tags = {}
    for event in events:
        if event["kind"] == "checkpoint" and "folder" in event:
            tags["checkpoint"] = event["folder"]
        elif event["kind"] == "stopped":
            tags["stopped_early"] = (
                f"after step {event['step']}; the model has the weights of step {event['best_step']}"
            )
        elif event["kind"] == "failure":
            tags |= failure_tag(event["time"], f"after step {event['step']}: {event['reason']}")
    return tags


def failure_tag(when: float, reason: str) -> dict[str, str]:
    """`failure.TIME`, in UTC."""
    return {f"failure.{datetime.fromtimestamp(when, UTC):%Y%m%dT%H%M%S}": reason}


def threshold_metrics(thresholds: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """`validation/speak_threshold_DATASET` and the like, from data set -> decision -> threshold."""
    return {
        f"validation/{decision}_threshold_{metric_part(dataset)}": value
        for dataset, chosen in thresholds.items()
        for decision, value in chosen.items()
    }


def _start(event: RunEvent) -> tuple[int, dict[str, float]]:
    return event["step"], {
        "run/workers": float(event["workers"]),
        "run/trainable_parameters": float(event["parameters"]),
    }


def _step(event: RunEvent) -> tuple[int, dict[str, float]]:
    values = {f"train/{name}": event[name] for name in ("loss", "grad_norm", "learning_rate", "epoch", "tokens")}
    values |= {f"train/loss_{name}": value for name, value in event["parts"].items()}
    values |= {f"train_labels/{name}": float(count) for name, count in event.get("labels", {}).items()}
    values |= {f"speed/{name}": event[name] for name in ("peak_memory_gib", "peak_gpu_memory_gib") if name in event}
    if seconds := event.get("seconds"):
        values |= {"speed/step_seconds": seconds, "speed/tokens_per_second": event["tokens"] / seconds}
    return event["step"], values | {f"system/{name}": value for name, value in event.get("system", {}).items()}


def validation_metrics(values: Mapping[str, float], group: str = "validation") -> dict[str, float]:
    """Losses and scores under the tracker's names, such as `validation/loss_speak` and `validation/speak_f1`."""
    return {f"{group}/{'loss_' if name in LOSS_PARTS else ''}{name}": float(value) for name, value in values.items()}


def _validation(event: RunEvent) -> tuple[int, dict[str, float]]:
    return event["step"], validation_metrics({**event.get("losses", {}), **event.get("scores", {})})


def _done(event: RunEvent) -> tuple[int, dict[str, float]]:
    step = event["model_step"]
    return max(step - 1, 0), {"model/step": float(step), **validation_metrics(event["validation"], "model")}


def _checkpoint(event: RunEvent) -> tuple[int, dict[str, float]]:
    return event["step"] - 1, {"run/checkpoint_seconds": event.get("seconds", 0.0)}


def _failure(event: RunEvent) -> tuple[int, dict[str, float]]:
    return max(event["step"] - 1, 0), {"run/failed_workers": float(event["workers"])}


_ROWS = {
    "start": _start,
    "step": _step,
    "validation": _validation,
    "streaming": _validation,
    "checkpoint": _checkpoint,
    "failure": _failure,
    "done": _done,
}
