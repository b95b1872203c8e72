"""Tracking on a real SQLite database."""

import json
import shlex
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, TEMPORARILY_UNAVAILABLE

from prospect.errors import CheckpointError, ConfigError
from prospect.escape import folder_name
from prospect.tracking.code_version import code_version
from prospect.tracking.pyfunc import ModelInterface
from prospect.tracking.retry import retry_until_available
from prospect.tracking.run import DatasetCard
from prospect.tracking.settings import NOTE, TrackingError, TrackingSettings
from prospect.tracking.tracking import Tracking
from scripts.cluster import free_port

INTERFACE = ModelInterface(
    "prospect.streaming.table",
    [{"name": "embedding", "type": "array", "items": {"type": "double"}, "required": True}],
    [{"name": "p_speak", "type": "double", "required": True}],
    [{"name": "goal", "type": "string", "default": "", "shape": None}],
)


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return Tracking(TrackingSettings(), tmp_path_factory.mktemp("root"))


class Clock:
    """In place of the module `time`: sleeping takes no time, and the clock knows of it."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("prospect.tracking.retry.time", made)
    return made


def model_folder(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "prospect.json").write_text(content)
    return folder


@pytest.mark.parametrize("folder", ["per%cent", "50%", "a?b=c", "50%25 #1"])
def test_a_storage_root_of_any_name_holds_its_database(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / folder / "out"
    run = Tracking(TrackingSettings(), root).open_run(root / "runs" / "a", "a", config={"seed": 1})
    again = Tracking(TrackingSettings(), root)
    assert again.open_run(root / "runs" / "a", "a").id == run.id
    assert json.loads(next((root / "mlartifacts").rglob("config.json")).read_text()) == {"seed": 1}
    assert shlex.split(again.where(run))[-1] == again.uri
    assert (root / "mlflow.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [folder]


@pytest.mark.parametrize(
    ("experiment", "folder"),
    [
        ("prospect", "prospect"), ("two words", "two words"), ("/Shared/kitchen", "%2FShared%2Fkitchen"),
        ("../x", "..%2Fx"), ("..", "%2E%2E"), ("50%", "50%25"), ("s3://bucket/x", "s3%3A%2F%2Fbucket%2Fx"),
    ],
)  # fmt: skip
def test_an_experiment_of_any_name_keeps_its_artifacts_below_the_root(experiment: str, folder: str) -> None:
    assert folder_name(experiment) == folder
    assert Path(folder).name == folder


def test_an_experiment_named_like_a_path_holds_a_run_s_files(tracking: Tracking, tmp_path: Path) -> None:
    named = Tracking(TrackingSettings(experiment="/Shared/kitchen"), tracking.root)
    run = named.open_run(tmp_path / "run", "run", config={"seed": 1})
    folder = tracking.root / "mlartifacts" / "%2FShared%2Fkitchen"
    assert [file.name for file in folder.rglob("config.json")] == ["config.json"]
    assert "config.json" in {file.path for file in named.client.list_artifacts(run.id)}


def test_one_run_however_often_it_is_opened(tracking: Tracking, tmp_path: Path) -> None:
    config = {"training": {"seed": 3, "losses": {"speak": 1.0}}, "model": {"base": "tiny"}}
    first = tracking.open_run(tmp_path / "a", "a", parameters=config, tags={"dataset": "d1"})
    first.log_metrics({"train/loss": 2.0, "train/lr": 0.1}, step=1)
    first.finish("FAILED")
    again = Tracking(tracking.settings, tracking.root).open_run(tmp_path / "a", "a", parameters=config)
    again.log_metrics({"train/loss": 1.0}, step=2)
    again.finish()
    assert again.id == first.id
    assert again.metrics() == {"train/loss": 1.0, "train/lr": 0.1}
    stored = tracking.client.get_run(first.id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"training.seed": "3", "training.losses.speak": "1.0", "model.base": "tiny"}
    assert stored.data.tags["dataset"] == "d1"
    assert stored.info.artifact_uri.startswith(tracking.root.as_uri())
    assert [metric.value for metric in tracking.client.get_metric_history(first.id, "train/loss")] == [2.0, 1.0]


def test_a_run_that_was_deleted_is_a_new_one(
    tracking: Tracking, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = tracking.open_run(tmp_path / "a", "a")
    tracking.client.delete_run(first.id)
    second = tracking.open_run(tmp_path / "a", "a", config={"seed": 1})
    assert second.id != first.id
    assert f"the MLflow run {first.id} of {tmp_path}/a was deleted" in caplog.text
    assert tracking.open_run(tmp_path / "a", "a").id == second.id
    assert caplog.text.count("was deleted") == 1


@pytest.mark.parametrize("deletions", [1, 2])
def test_an_experiment_that_was_deleted_is_a_new_one(
    deletions: int, tracking: Tracking, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = TrackingSettings(experiment=f"deleted {deletions} times")
    for _ in range(deletions):
        before = Tracking(settings, tracking.root)
        old = before.open_run(tmp_path / "run", "run")
        before.client.delete_experiment(before._experiment)
    after = Tracking(settings, tracking.root)
    assert after.open_run(tmp_path / "run", "run").id != old.id
    after.log_job("label", config={}, metrics={}, texts={"report.json": "{}"})
    name = f"{settings.experiment} {deletions + 1}"
    assert after.client.get_experiment(after._experiment).name == name
    assert f"runs go to {name!r}" in caplog.text


def test_another_folder_is_another_run(tracking: Tracking, tmp_path: Path) -> None:
    assert tracking.open_run(tmp_path / "b", "b").id != tracking.open_run(tmp_path / "c", "c").id


def test_register_promote_resolve(tracking: Tracking, tmp_path: Path) -> None:
    run = tracking.open_run(tmp_path / "run", "run")
    first = tracking.register("dst", run, model_folder(tmp_path / "m1", "one"), INTERFACE)
    assert (tracking.resolve("models:/dst@candidate") / "prospect.json").read_text() == "one"
    assert tracking.champion("dst") is None
    tracking.set_champion("dst", first)

    other = tracking.open_run(tmp_path / "other", "other")
    second = tracking.register("dst", other, model_folder(tmp_path / "m2", "two"), INTERFACE)
    assert tracking.version_of("models:/dst@champion") == ("dst", first)
    tracking.set_champion("dst", second)
    assert tracking.champion("dst") == second
    assert (tracking.resolve("models:/dst@champion") / "prospect.json").read_text() == "two"
    assert (tracking.resolve(f"models:/dst/{first}") / "prospect.json").read_text() == "one"


def test_a_model_is_registered_once_and_says_what_it_takes_and_gives(tracking: Tracking, tmp_path: Path) -> None:
    """A driver that died right after registering does it again; the version stays."""
    run, folder = tracking.open_run(tmp_path / "run", "run"), model_folder(tmp_path / "m", "one")
    tags, about = {"step": "20", "validation/speak_f1": "0.5"}, "7 videos of toy; 20 steps."
    version = tracking.register("signed", run, folder, INTERFACE, 20, tags, about)
    assert tracking.register("signed", run, folder, INTERFACE, 20, tags) == version
    [made] = tracking.client.search_model_versions("name = 'signed'")
    [output] = tracking.client.get_run(run.id).outputs.model_outputs
    assert (made.tags, made.description, output.step) == (tags, about, 20)
    tracking.describe_version("signed", version, "# Card\n" + "x" * 9000)
    [described] = tracking.client.search_model_versions("name = 'signed'")
    assert described.description.startswith("# Card\nx")
    assert len(described.description) == 5000, "MLflow takes no more"
    assert made.source == tracking.client.get_logged_model(output.model_id).artifact_location
    signature = Model.load(str(tracking.resolve("models:/signed@candidate"))).signature
    assert signature.inputs.input_names() == ["embedding"]
    assert signature.outputs.input_names() == ["p_speak"]
    assert [parameter.name for parameter in signature.params] == ["goal"]


def test_a_run_keeps_what_it_read_and_which_code_ran(tracking: Tracking, tmp_path: Path) -> None:
    config = {"training": {"seed": 3, "min_workers": None}, "serving": {"port": 8000}}
    run = tracking.open_run(tmp_path / "run", "read", config=config, parameters={"training": config["training"]})
    for _ in range(2):  # a run that is continued says it again
        run.log_datasets([DatasetCard("toy/train", "0123456789abcdef", "/data/toy", "training", {"clips": 7})])
    stored = tracking.client.get_run(run.id)
    [read] = stored.inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest) == ("toy/train", "0123456789abcdef")
    assert (json.loads(read.dataset.profile), read.tags[0].value) == ({"clips": 7}, "training")
    assert stored.data.params == {"training.seed": "3"}
    code = code_version()
    assert code is not None
    assert stored.data.tags["mlflow.source.git.commit"] == code.commit
    files = {file.path for file in tracking.client.list_artifacts(run.id)}
    assert files == {"config.json", *(["uncommitted.diff"] if code.diff else [])}
    assert stored.data.tags["mlflow.source.git.dirty"] == str(bool(code.diff)).lower()
    assert tracking.where(run) == f"mlflow ui --backend-store-uri {tracking.uri}"


def test_a_path_is_its_own_model(tracking: Tracking, tmp_path: Path) -> None:
    assert tracking.resolve(str(tmp_path)) == tmp_path


def test_what_is_not_there_is_one_sentence(tracking: Tracking, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the folder does not exist; train first"):
        tracking.resolve(tmp_path / "nothing")
    for missing in ("models:/nobody@champion", "models:/nobody/3"):
        with pytest.raises(CheckpointError, match=r"is not registered at sqlite:.*train first"):
            tracking.resolve(missing)
    with pytest.raises(ConfigError, match="must be a path, models:/NAME@ALIAS"):
        tracking.resolve("models:/dst")


def test_a_uri_that_leads_nowhere_is_one_sentence_at_once(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "broken.db").write_text("no database, but long enough to be read as one" * 100)
    for uri in ("ftp://nowhere", f"sqlite:///{tmp_path}/broken.db"):
        tracking = Tracking(TrackingSettings(uri=uri), tmp_path)
        with pytest.raises(ConfigError, match=r"tracking.uri: .* does not answer"):
            retry_until_available(lambda tracking=tracking: tracking.open_run(tmp_path / "run", "run"), print)
    assert clock.now == 0


def test_a_server_that_is_away_at_the_start_is_waited_for(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two minutes, with one line on the console; a server that does come is in tests/e2e/test_failures.py."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracking = Tracking(TrackingSettings(uri=f"http://127.0.0.1:{free_port()}"), tmp_path)
    lines: list[str] = []
    with pytest.raises(TrackingError, match=r"did not answer for 120 s \(tracking.uri: http://.*; start the same run"):
        retry_until_available(lambda: tracking.open_run(tmp_path / "run", "run"), lines.append)
    assert 100 < clock.now <= 120
    [line] = lines
    assert line.startswith(f"train  waiting for the tracking server: tracking.uri: {tracking.uri} does not answer")


def test_what_the_server_answers_in_the_end_comes_back_and_a_mistake_does_at_once(clock: Clock) -> None:
    away = [MlflowException("bad gateway", TEMPORARILY_UNAVAILABLE), ConnectionError("refused"), OSError("time-out")]

    def answer() -> str:
        if away:
            raise away.pop()
        return "run"

    lines: list[str] = []
    assert retry_until_available(answer, lines.append) == "run"
    assert (clock.now, lines) == (1 + 2 + 4, ["train  waiting for the tracking server: time-out"])
    for mistake in (MlflowException("no such run", RESOURCE_DOES_NOT_EXIST), KeyError("a defect")):
        with pytest.raises(type(mistake)):
            retry_until_available(lambda mistake=mistake: raised(mistake), lines.append)
    assert clock.now == 7


def raised(error: Exception) -> None:
    raise error


def test_a_job_that_prepares_data_is_a_finished_run_with_its_reports(tracking: Tracking) -> None:
    numbers = {"data/train/holoassist/videos": 3.0}
    data = {"data": {"source": "folder"}}
    run = tracking.log_job(
        "label", config=data, parameters=data, metrics=numbers, texts={"report.json": "{}"}, about="3 videos."
    )
    stored = tracking.client.get_run(run.id)
    assert (stored.info.status, stored.data.tags["prospect.job"]) == ("FINISHED", "label")
    assert (stored.data.metrics, stored.data.params) == (numbers, {"data.source": "folder"})
    assert stored.data.tags[NOTE] == "3 videos."
    assert {file.path for file in tracking.client.list_artifacts(run.id)} >= {"config.json", "report.json"}
