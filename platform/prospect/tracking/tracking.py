"""One MLflow server or database: its runs and its registered models.

All calls go through `MlflowClient` with explicit run ids, so that nothing depends on MLflow's global state. With no
`uri` everything lies under the storage root: runs in `mlflow.db` (SQLite), artifacts in `mlartifacts/`.
"""

import getpass
import json
import logging
import os
import shlex
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, LoggedModel, LoggedModelOutput
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from prospect.errors import CheckpointError, ConfigError
from prospect.escape import folder_name
from prospect.files import write_json
from prospect.messages import first_line
from prospect.tracking.code_version import code_version
from prospect.tracking.pyfunc import ModelInterface
from prospect.tracking.retry import is_away
from prospect.tracking.run import TrackedRun
from prospect.tracking.settings import (
    NOTE,
    SQLITE,
    TrackingError,
    TrackingSettings,
    database_file,
    database_uri,
)

CANDIDATE, CHAMPION = "candidate", "champion"
_MAX_DESCRIPTION = 5000
"""MLflow's limit for a version's description, in characters."""

log = logging.getLogger(__name__)

T = TypeVar("T")


class Tracking:
    """One MLflow server or database.

    Args:
        settings: the server and the experiment.
        root: the storage root; holds database and artifacts unless `settings` names a server.
    """

    def __init__(self, settings: TrackingSettings, root: str | Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # the console has one of its own
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # and says itself where a run is
        self.settings = settings
        self.root = Path(root)
        named = settings.uri or os.environ.get("MLFLOW_TRACKING_URI")
        self.uri = named or database_uri(self.root)

    @cached_property
    def client(self) -> MlflowClient:
        """The client, once the server or database has answered.

        Raises:
            TrackingError: the server is unavailable.
            ConfigError: the URI names no server or database.
        """
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # MLflow's own 7 keep a user waiting for minutes
        for chatty in ("mlflow.store.db", "mlflow.store.model_registry"):  # they announce tables and versions
            logging.getLogger(chatty).setLevel(logging.WARNING)
        try:
            if file := database_file(self.uri):
                file.parent.mkdir(parents=True, exist_ok=True)
            client = MlflowClient(self.uri, self.uri)
            client.search_experiments(max_results=1)
            self._remove_encoded_folder()
        except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # a database may lack its driver
            kind = TrackingError if self._is_server and is_away(error) else ConfigError
            raise kind(
                f"tracking.uri: {self.uri} does not answer: {first_line(error)}", field="tracking.uri"
            ) from error
        return client

    def _remove_encoded_folder(self) -> None:
        """Remove the empty folder that MLflow makes where the URI of an SQLite file encodes a character."""
        if (file := database_file(self.uri)) and self.uri != f"{SQLITE}{file}":
            with suppress(OSError):
                os.removedirs(Path(self.uri.removeprefix(SQLITE)).parent)

    @property
    def _is_server(self) -> bool:
        """Whether the URI names a server, which may be unavailable for a while."""
        return "://" in self.uri and not self.uri.startswith(("sqlite:", "file:"))

    def open_run(
        self,
        folder: Path,
        name: str,
        *,
        config: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> TrackedRun:
        """Resume the MLflow run of `folder`, or create it.

        Args:
            folder: of the training run; keeps the run's id in `mlflow_run.json`.
            name: of the run.
            config: nested; uploaded whole as `config.json`.
            parameters: nested; a new run keeps the set ones as flat parameters, for comparison.
            tags: further tags.
        """
        file = folder / "mlflow_run.json"
        known = json.loads(file.read_text()) if file.is_file() else {"key": uuid.uuid4().hex}
        run = self.find_run(known["run_id"]) if "run_id" in known else None
        if run is None and known.get("tracking_uri") == self.uri:
            log.warning("the MLflow run %s of %s was deleted; a new one records what follows", known["run_id"], folder)
        if run is not None:
            self.client.update_run(run.id, status="RUNNING")
            run.log_config(config or {})
            run.set_tags(tags or {})
            return run
        # The key stands in the file before the run exists: whoever dies in between finds it by its key again.
        key = known.get("key", folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, {"key": key})
        found = self.client.search_runs([self._experiment], f"tags.`prospect.key` = '{key}'", max_results=1)
        run = TrackedRun(self.client, found[0].info.run_id) if found else self._new_run(name, {"prospect.key": key})
        run.log_config(config or {})
        run.log_parameters(parameters or {})
        run.set_tags(tags or {})
        write_json(file, {"key": key, "run_id": run.id, "tracking_uri": self.uri})
        return run

    def _new_run(self, name: str, tags: Mapping[str, str]) -> TrackedRun:
        """Create a run with its user, command and code version."""
        code = code_version()
        origin = {"mlflow.user": _user(), "mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "JOB"}
        if code:
            origin |= {"mlflow.source.git.commit": code.commit, "mlflow.source.git.branch": code.branch}
            origin |= {"mlflow.source.git.dirty": str(bool(code.diff)).lower()}
        made = self.client.create_run(self._experiment, run_name=name, tags=origin | dict(tags))
        if code and code.diff:
            self.client.log_text(made.info.run_id, code.diff, "uncommitted.diff")
        return TrackedRun(self.client, made.info.run_id)

    def where(self, run: TrackedRun) -> str:
        """The address of a run's page, or the command that shows it."""
        if self.uri.startswith(("http://", "https://")):
            page = f"{self.uri.rstrip('/')}/#/experiments/{self._experiment}/runs/{run.id}"
            return f"{page}?workflowType=machine_learning"  # else MLflow may open as for language models, without runs
        return f"mlflow ui --backend-store-uri {shlex.quote(self.uri)}"

    def log_job(
        self,
        job: str,
        *,
        config: Mapping[str, Any],
        metrics: Mapping[str, float],
        texts: Mapping[str, str],
        parameters: Mapping[str, Any] | None = None,
        about: str = "",
    ) -> TrackedRun:
        """Record a job that prepares data as a finished run: settings, metrics, and reports as artifacts.

        Args:
            job: `embed` or `label`; the run's name begins with it, and it is the tag `prospect.job`.
            config: nested; uploaded whole as `config.json`.
            metrics: by name.
            texts: artifact's name -> its text.
            parameters: as in `open_run`.
            about: one sentence on what it found.
        """
        name = f"{job}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
        run = self._new_run(name, {"prospect.job": job, NOTE: about})
        run.log_config(config)
        run.log_parameters(parameters or {})
        run.log_metrics(metrics)
        for artifact, text in texts.items():
            self.client.log_text(run.id, text, artifact)
        run.finish()
        return run

    def find_run(self, run_id: str) -> TrackedRun | None:
        """A run by its id, or None where this server does not know it, or somebody deleted it."""
        try:
            found = self.client.get_run(run_id).info
            return TrackedRun(self.client, run_id) if found.lifecycle_stage == LifecycleStage.ACTIVE else None
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def register(
        self,
        name: str,
        run: TrackedRun,
        folder: Path,
        interface: ModelInterface,
        step: int = 0,
        tags: Mapping[str, str] | None = None,
        about: str = "",
    ) -> int:
        """Upload a model folder, and register it as the newest version of `name`, alias `candidate`.

        A run has one version of a name: a second call completes the first.

        Args:
            name: of the registered model.
            run: the training run.
            folder: gets an `MLmodel` with the signature of `interface`.
            interface: of the model.
            step: optimizer step of the weights.
            tags: of the version.
            about: what its page says of it, in Markdown.

        Returns:
            The version.
        """
        model = self._log_model(name, run, folder, interface, step)
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = self.client.search_model_versions(f"name = '{name}' and run_id = '{run.id}'")
        if known:
            version = known[0].version
        else:
            made = model.artifact_location, run.id, dict(tags or {})
            told = about[:_MAX_DESCRIPTION]
            version = self.client.create_model_version(name, *made, model_id=model.model_id, description=told).version
        versions = json.dumps([{"name": name, "version": str(version)}])
        self.client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": versions})  # the UI's link to it
        self.client.set_registered_model_alias(name, CANDIDATE, str(version))
        return int(version)

    def _log_model(self, name: str, run: TrackedRun, folder: Path, interface: ModelInterface, step: int) -> LoggedModel:
        """The run's model, with the files of `folder`."""
        known = self.client.search_logged_models([self._experiment], f"source_run_id = '{run.id}'", max_results=1)
        model = known[0] if known else self.client.create_logged_model(self._experiment, name, run.id)
        interface.write(folder, run.id, model.model_id)
        self.client.log_model_artifacts(model.model_id, str(folder))
        self.client.finalize_logged_model(model.model_id, "READY")
        outputs = self.client.get_run(run.id).outputs
        if outputs is None or not outputs.model_outputs:
            self.client.log_outputs(run.id, [LoggedModelOutput(model.model_id, step)])
        return model

    def tag_version(self, name: str, version: int, tags: Mapping[str, str]) -> None:
        """Give a registered version tags."""
        for key, value in tags.items():
            self.client.set_model_version_tag(name, str(version), key, value)

    def describe_version(self, name: str, version: int, about: str) -> None:
        """Replace what the page of a registered version says of it, in Markdown."""
        self.client.update_model_version(name, str(version), about[:_MAX_DESCRIPTION])

    def champion(self, name: str) -> int | None:
        """The version that is served by default; None where there is none yet."""
        found = self._version(name, CHAMPION)
        return None if found is None else int(found.version)

    def set_champion(self, name: str, version: int) -> None:
        """Make a version the champion; the one before it stays registered."""
        self.client.set_registered_model_alias(name, CHAMPION, str(version))

    def open_evaluation(self, key: str, name: str, parent: TrackedRun | None) -> TrackedRun:
        """The run of the evaluation with this key: a child of the training run, or a run of its own without one."""
        found = self.client.search_runs([self._experiment], f"tags.`prospect.evaluation` = '{key}'", max_results=1)
        if found:
            return TrackedRun(self.client, found[0].info.run_id)
        tags = {"prospect.job": "eval", "prospect.evaluation": key}
        return self._new_run(name, tags | ({"mlflow.parentRunId": parent.id} if parent else {}))

    def resolve(self, model: str | Path) -> Path:
        """The local folder of a model: a path, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

        Raises:
            CheckpointError: the model does not exist; the sentence names those that do.
            ConfigError: neither a path nor such a URI.
        """
        if not str(model).startswith("models:/"):
            if not Path(model).is_dir():
                raise CheckpointError(f"model {str(model)!r}: the folder does not exist; train first, or give its path")
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
            raise ConfigError(f"model {model!r} must be a path, models:/NAME@ALIAS or models:/NAME/VERSION")
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
        """The experiment's id. MLflow keeps the name of a deleted one, so that the next gets a number."""
        name, number = self.settings.experiment, 1
        while (known := self.client.get_experiment_by_name(name)) and known.lifecycle_stage != LifecycleStage.ACTIVE:
            number += 1
            deleted, name = name, f"{self.settings.experiment} {number}"
            log.warning("the MLflow experiment %r was deleted; runs go to %r", deleted, name)
        return known.experiment_id if known else self._new_experiment(name)

    def _new_experiment(self, name: str) -> str:
        """Without a server its artifacts need an absolute folder."""
        location = None
        if self.uri.startswith("sqlite:"):
            location = (self.root.absolute() / "mlartifacts" / folder_name(name)).as_uri()
        return self.client.create_experiment(name, artifact_location=location)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return str(os.getuid())
