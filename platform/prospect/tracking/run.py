"""One MLflow run: its parameters, metrics, tags and files."""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from prospect.settings import flatten

_MAX_PARAM = 6000
"""MLflow's limit for a parameter's value, in characters."""


_MAX_PARAMS, _MAX_METRICS = 100, 1000
"""MLflow's limits for one request."""


@dataclass(frozen=True)
class DatasetCard:
    """A data set that a run read."""

    name: str
    digest: str
    """Hash over all records."""
    source: str
    """Path or URL."""
    context: str
    """Use of the data: `training` or `validation`."""
    profile: Mapping[str, Any]
    """Counts."""


class TrackedRun:
    """One MLflow run, by its id."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.id = run_id

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Write `config.json`; a continued run replaces it."""
        if config:
            self.log_json(config, "config.json")

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Log nested settings as flat parameters (`training.seed`), without empty ones."""
        values = {key: value for key, value in flatten(parameters).items() if value not in (None, [], {}, "")}
        flat = [Param(key, str(value)[:_MAX_PARAM]) for key, value in values.items()]
        for first in range(0, len(flat), _MAX_PARAMS):
            self.client.log_batch(self.id, params=flat[first : first + _MAX_PARAMS])

    def log_datasets(self, cards: Iterable[DatasetCard]) -> None:
        """Record the data sets that the run reads; MLflow keeps known ones."""
        inputs = [
            DatasetInput(
                Dataset(
                    card.name,
                    card.digest,
                    source_type="local",
                    source=json.dumps({"uri": card.source}),
                    profile=json.dumps(dict(card.profile)),
                ),
                [InputTag("mlflow.data.context", card.context)],
            )
            for card in cards
        ]
        self.client.log_inputs(self.id, inputs)

    def log_json(self, values: Mapping[str, Any], name: str) -> None:
        """Upload a JSON file as artifact `name`."""
        self.client.log_dict(self.id, dict(values), name)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self.log_history([(step, time.time(), metrics)])

    def log_history(self, rows: Iterable[tuple[int, float, Mapping[str, float]]]) -> None:
        """Log metrics of many steps at once: (step, seconds since 1970, values) each."""
        metrics = [
            Metric(name, float(value), int(when * 1000), step)
            for step, when, row in rows
            for name, value in row.items()
        ]
        for first in range(0, len(metrics), _MAX_METRICS):
            self.client.log_batch(self.id, metrics[first : first + _MAX_METRICS])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.client.log_batch(self.id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def log_file(self, file: Path, name: str | None = None) -> None:
        """Upload a file into artifact folder `name`."""
        self.client.log_artifact(self.id, str(file), name)

    def metrics(self) -> dict[str, float]:
        """The latest value of each metric."""
        return dict(self.client.get_run(self.id).data.metrics)

    def finish(self, status: str = "FINISHED") -> None:
        """End the run as `FINISHED`, `FAILED` or `KILLED`; opening it again resumes it."""
        self.client.set_terminated(self.id, status)
