"""Runs, metrics and registered models. The only module that imports MLflow (DESIGN 4.10).

All calls go through `MlflowClient` with explicit run ids, so that nothing depends on MLflow's global state. With no
`uri` everything lies under the storage root: runs in `mlflow.db` (SQLite), artifacts in `mlartifacts/`.
"""

import json
import logging
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from pydantic import Field
from sqlalchemy.exc import SQLAlchemyError

from prospect.errors import CheckpointError, ConfigError, ProspectError
from prospect.settings import Settings

CANDIDATE, CHAMPION = "candidate", "champion"

_MAX_PARAM = 6000
"""Characters that MLflow keeps of one parameter's value."""
_MAX_PARAMS, _MAX_METRICS = 100, 1000
"""How many MLflow takes at once."""


T = TypeVar("T")


class TrackingError(ProspectError):
    """The tracking server does not answer."""

    code = "tracking_unavailable"


class TrackingSettings(Settings):
    """Where runs and models are recorded."""

    uri: str | None = None
    """MLflow tracking URI; default: MLFLOW_TRACKING_URI, else an SQLite file under storage.root."""
    experiment: str = Field(default="prospect", min_length=1)


class Tracking:
    """One MLflow server or database.

    Args:
        settings: which one.
        root: the storage root; holds database and artifacts where `settings` names no server.
    """

    def __init__(self, settings: TrackingSettings, root: str | Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self.settings = settings
        self.root = Path(root)
        named = settings.uri or os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = named or f"sqlite:///{self.root.absolute() / 'mlflow.db'}"

    @cached_property
    def client(self) -> MlflowClient:
        """The client, once the server or database has answered; raises ConfigError if it does not."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # MLflow's own 7 keep a user waiting for minutes
        logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # it announces every new table
        try:
            if self.uri.startswith("sqlite:"):
                Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            client = MlflowClient(self.uri, self.uri)
            client.search_experiments(max_results=1)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            reason = str(error).strip().split("\n", 1)[0]
            raise ConfigError(f"tracking.uri: {self.uri} does not answer: {reason}", field="tracking.uri") from error
        return client

    def open_run(
        self, folder: Path, name: str, *, config: Mapping[str, Any] | None = None, tags: Mapping[str, str] | None = None
    ) -> "Run":
        """The MLflow run that belongs to `folder`: the one opened there before, else a new one.

        Args:
            folder: of the training run; keeps the run's id in `mlflow_run.json`.
            name: of the run.
            config: nested; logged as flat parameters and, whole, as `config.json`.
            tags: more of where the run comes from.
        """
        file = folder / "mlflow_run.json"
        known = json.loads(file.read_text()) if file.is_file() else {"key": uuid.uuid4().hex}
        if "run_id" in known and (run := self.find_run(known["run_id"])):
            self.client.update_run(run.id, status="RUNNING")
            return run
        # The key stands in the file before the run exists: whoever dies in between finds it by its key again.
        key = known.get("key", folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        _replace(file, {"key": key})
        found = self.client.search_runs([self._experiment], f"tags.`prospect.key` = '{key}'", max_results=1)
        made = (
            found[0]
            if found
            else self.client.create_run(self._experiment, run_name=name, tags=_git_tags() | {"prospect.key": key})
        )
        run = Run(self.client, made.info.run_id)
        run.log_config(config or {})
        run.set_tags(tags or {})
        _replace(file, {"key": key, "run_id": run.id, "tracking_uri": self.uri})
        return run

    def log_job(
        self, job: str, *, config: Mapping[str, Any], metrics: Mapping[str, float], texts: Mapping[str, str]
    ) -> "Run":
        """A finished run for a job that prepares data: its settings, its numbers, and its reports as artifacts.

        Args:
            job: `embed` or `label`; the run's name begins with it, and it is the tag `prospect.job`.
            config: nested.
            metrics: by name.
            texts: artifact's name -> its text.
        """
        name = f"{job}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
        tags = _git_tags() | {"prospect.job": job}
        run = Run(self.client, self.client.create_run(self._experiment, run_name=name, tags=tags).info.run_id)
        run.log_config(config)
        run.log_metrics(metrics)
        for artifact, text in texts.items():
            self.client.log_text(run.id, text, artifact)
        run.finish()
        return run

    def find_run(self, run_id: str) -> "Run | None":
        """A run by its id, or None where this server does not know it."""
        try:
            return Run(self.client, self.client.get_run(run_id).info.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def register(self, name: str, run: "Run", folder: Path) -> int:
        """Uploads a model folder to `run` and registers it as the newest version of `name`, alias `candidate`.

        Returns:
            The version.
        """
        run.log_folder(folder, "model")
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self.client.get_run(run.id).info.artifact_uri}/model"
        version = self.client.create_model_version(name, source=source, run_id=run.id).version
        self.client.set_registered_model_alias(name, CANDIDATE, version)
        return int(version)

    def promote(self, name: str, version: int, metric: str, value: float) -> bool:
        """Makes a version the champion if there is none with this `metric`, or if `value` is above the champion's.

        Returns:
            Whether it now is the champion. The value is kept with the version either way.
        """
        self.client.set_model_version_tag(name, str(version), metric, repr(float(value)))
        champion = self._version(name, CHAMPION)
        if champion is not None and int(champion.version) != version:
            standing = champion.tags.get(metric)
            if standing is not None and not value > float(standing):
                return False
        self.client.set_registered_model_alias(name, CHAMPION, str(version))
        return True

    def resolve(self, model: str | Path) -> Path:
        """The local folder of a model: a path, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

        Raises:
            CheckpointError: it does not exist; the sentence says what does.
            ConfigError: neither a path nor such a URI.
        """
        if not str(model).startswith("models:/"):
            if not Path(model).is_dir():
                raise CheckpointError(f"model {str(model)!r}: there is no such folder; train first, or give its path")
            return Path(model)
        version = self._named_version(str(model))
        source = self.client.get_model_version_download_uri(version.name, version.version)
        try:
            folder = mlflow.artifacts.download_artifacts(artifact_uri=source, tracking_uri=self.uri)
        except (MlflowException, OSError) as error:
            raise CheckpointError(f"model {str(model)!r}: its files at {source} cannot be read ({error})") from error
        return Path(folder)

    def version_of(self, model: str) -> tuple[str, int]:
        """(name, version) of `models:/NAME@ALIAS` or `models:/NAME/VERSION`; raises as `resolve` does."""
        version = self._named_version(model)
        return version.name, int(version.version)

    def _named_version(self, model: str) -> Any:
        name, at, alias = model.removeprefix("models:/").partition("@")
        if not at:
            name, _, alias = name.rpartition("/")
        if not name or not alias:
            raise ConfigError(f"model {model!r} is neither a path nor models:/NAME@ALIAS nor models:/NAME/VERSION")
        version = self._version(name, alias, by_number=not at)
        if version is None:
            known = ", ".join(f"{m.name} ({', '.join(m.aliases) or 'no alias'})" for m in self._models()) or "none"
            raise CheckpointError(f"model {model!r} is not registered at {self.uri}; registered: {known}; train first")
        return version

    def _version(self, name: str, alias: str, by_number: bool = False) -> Any | None:
        try:
            if by_number:
                return self.client.get_model_version(name, alias)
            return self.client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None

    def _models(self) -> list[Any]:
        return list(self.client.search_registered_models())

    @cached_property
    def _experiment(self) -> str:
        """The experiment's id. Without a server its artifacts need an absolute folder."""
        known = self.client.get_experiment_by_name(self.settings.experiment)
        if known is not None:
            return known.experiment_id
        location = None
        if self.uri.startswith("sqlite:"):
            location = (self.root.absolute() / "mlartifacts" / self.settings.experiment).as_uri()
        return self.client.create_experiment(self.settings.experiment, artifact_location=location)


class Run:
    """One MLflow run, by its id."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.id = run_id

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Nested settings as flat parameters (`training.seed`), and whole as `config.json`."""
        flat = [Param(key, str(value)[:_MAX_PARAM]) for key, value in flatten(config).items()]
        for first in range(0, len(flat), _MAX_PARAMS):
            self.client.log_batch(self.id, params=flat[first : first + _MAX_PARAMS])
        if config:
            self.client.log_dict(self.id, dict(config), "config.json")

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        self.log_history([(step, time.time(), metrics)])

    def log_history(self, rows: Iterable[tuple[int, float, Mapping[str, float]]]) -> None:
        """Many metrics of many steps at once: (step, seconds since 1970, values) each."""
        metrics = [
            Metric(name, float(value), int(when * 1000), step)
            for step, when, row in rows
            for name, value in row.items()
        ]
        for first in range(0, len(metrics), _MAX_METRICS):
            self.client.log_batch(self.id, metrics[first : first + _MAX_METRICS])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.client.log_batch(self.id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def log_folder(self, folder: Path, name: str) -> None:
        """Uploads a folder as artifact `name`."""
        self.client.log_artifacts(self.id, str(folder), name)

    def log_file(self, file: Path, name: str | None = None) -> None:
        """Uploads a file, into artifact folder `name`."""
        self.client.log_artifact(self.id, str(file), name)

    def metrics(self) -> dict[str, float]:
        """The latest value of each metric."""
        return dict(self.client.get_run(self.id).data.metrics)

    def finish(self, status: str = "FINISHED") -> None:
        """`FINISHED`, `FAILED` or `KILLED`; opening the run again sets it going again."""
        self.client.set_terminated(self.id, status)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _git_tags() -> dict[str, str]:
    """The commit of the code that runs, where it is a checkout."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": done.stdout.strip()}


def _replace(file: Path, values: Mapping[str, str]) -> None:
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(values))
    partial.rename(file)


def patiently(call: Callable[[], T], report: Callable[[str], None], seconds: float = 120) -> T:
    """The result of `call`, which is repeated for `seconds` while the server does not answer.

    Raises:
        TrackingError: it never did.
    """
    deadline, pause = time.monotonic() + seconds, 1.0
    while True:
        try:
            return call()
        except (MlflowException, SQLAlchemyError, OSError) as error:  # those of `requests` are OSErrors
            if isinstance(error, MlflowException) and error.error_code not in _AWAY:
                raise
            reason = str(error).strip().split("\n", 1)[0]
            if time.monotonic() + pause > deadline:
                raise TrackingError(
                    f"the tracking server did not answer for {seconds:.0f} s ({reason}); start the same run again when "
                    "it does: what is done stays done",
                    field="tracking.uri",
                ) from error
            if pause == 1.0:
                report(f"train  waiting for the tracking server: {reason}")
        time.sleep(pause)
        pause = min(2 * pause, 10.0)


_AWAY = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}
"""What MLflow calls a connection that was refused or lost, a time-out and a server's own failure."""
