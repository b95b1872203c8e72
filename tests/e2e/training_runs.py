"""Small real runs of the training job, and what is left of one in MLflow; shared by the tests of whole paths."""

import time
from collections.abc import Callable
from pathlib import Path

from mlflow.entities import Run

from prospect.config.schema import Config, StorageSettings
from prospect.data.sources import DataSettings, to_jsonl
from prospect.tracking.tracking import Tracking
from prospect.training.events import RunEvent, read_events
from prospect.training.result import TrainResult
from prospect.vision.fingerprint import encoder_fingerprint
from tests.factories import TOY_CONTEXT, TOY_MODEL, TOY_TRAINING, TOY_VISION, stored, toy_dialogue


def prepared(root: Path, **training: object) -> Config:
    """Eight dialogues, two of them for validation, and their embeddings, below `root`."""
    dialogues = [toy_dialogue(n).model_copy(update={"split": "val" if n > 5 else "train"}) for n in range(8)]
    (root / "dialogues.jsonl").write_text(to_jsonl(dialogues))
    stored(dialogues, root / "embeddings", encoder_fingerprint(TOY_VISION))
    return Config(
        storage=StorageSettings(root=str(root)),
        data=DataSettings(source="dialogues", path=root / "dialogues.jsonl"),
        vision=TOY_VISION,
        model=TOY_MODEL,
        training=TOY_TRAINING.model_copy(update=training),
        context=TOY_CONTEXT,
    )


def events_in(root: Path) -> list[RunEvent]:
    return [event for event, _ in read_events(root / "runs" / "run" / "metrics.jsonl")]


def steps_in(root: Path) -> list[int]:
    """Of the steps of the run below `root`, as they were done."""
    return [event["step"] for event in events_in(root) if event["kind"] == "step"]


def wait_for(what: Callable[[], object], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_one_run(config: Config, result: TrainResult, steps: int = 60) -> Run:
    """That there is one MLflow run, finished, with each step once and in order."""
    tracking = Tracking(config.tracking, config.storage.root)
    [experiment] = [e for e in tracking.client.search_experiments() if e.name == "prospect"]
    [run] = tracking.client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (result.mlflow_run, "FINISHED")
    history = tracking.client.get_metric_history(result.mlflow_run, "train/loss")
    assert [metric.step for metric in sorted(history, key=lambda m: m.timestamp)] == list(range(steps))
    return run
