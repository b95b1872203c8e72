"""Training on real Ray Train with DeepSpeed: two workers, one of which is killed on the way."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import mlflow.artifacts
import pytest
import torch
from mlflow.models import Model

from prospect.cluster.train import train
from prospect.config.schema import Config
from prospect.errors import ConfigError
from prospect.model.checkpoint import load_model
from prospect.tracking.code_version import code_version
from prospect.tracking.tracking import Tracking
from prospect.training.events import read_events
from prospect.training.settings import TrainingError
from prospect.vision.fingerprint import encoder_fingerprint
from prospect.vision.settings import VisionSettings
from tests.e2e.scraped import scrape_until
from tests.e2e.training_runs import assert_one_run, prepared
from tests.factories import TOY_MODEL

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    made = prepared(tmp_path_factory.mktemp("root"), run_name="e2e", num_workers=2, max_failures=1)
    return made.model_copy(update={"model": TOY_MODEL.model_copy(update={"whiten_frames": True})})


def kill_a_worker_after(file: Path, step: int, killed: list[int]) -> None:
    """SIGKILLs the process of rank 1 as soon as rank 0 has logged `step`."""
    while not killed:
        events = [event for event, _ in read_events(file)]
        if any(event["kind"] == "step" and event["step"] >= step for event in events):
            killed.append(next(event["pids"][1] for event in events if event["kind"] == "start"))
            os.kill(killed[0], signal.SIGKILL)
        time.sleep(0.05)


def test_a_run_survives_the_death_of_a_worker(local_ray: None, config: Config) -> None:
    """It is resumed, and MLflow and the console have everything about it."""
    root = Path(config.storage.root)
    metrics = root / "runs" / "e2e" / "metrics.jsonl"
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after, args=(metrics, 24, killed), daemon=True)
    killer.start()
    lines: list[str] = []
    code = code_version()
    result = train(config, lines.append)
    assert killed
    assert (result.steps, result.model_step, result.reused) == (60, 60, False)
    assert result.last_loss < 0.5 * result.first_loss
    assert result.validation["loss"] > 0
    assert any("resumed at step 20 of 60 on 2 CPU workers" in line for line in lines), lines
    assert any("step 60/60" in line for line in lines), lines
    table = [line.split() for line in lines]
    assert ["part", "tensors", "trainable", "frozen"] in table, lines
    assert any(line[:1] == ["all"] for line in table), lines

    scrape_until(
        {
            "prospect_training_step": 60,
            "prospect_training_loss": 0,
            "prospect_training_tokens_total": 1,
            "prospect_training_clips_total": 60,
            "prospect_training_failed_workers_total": 1,
        }
    )

    run = assert_one_run(config, result)
    tracking = Tracking(config.tracking, root)
    starts = tracking.client.get_metric_history(result.mlflow_run, "run/workers")
    assert [(start.step, start.value) for start in starts] == [(0, 2), (20, 2)]
    assert any(key.startswith("failure.") and "worker 1" in reason for key, reason in run.data.tags.items())
    assert run.data.metrics.keys() >= {
        "train/loss", "train/loss_speak", "train/loss_state", "train/learning_rate", "train_labels/speak_positive",
        "speed/step_seconds", "speed/tokens_per_second", "speed/peak_memory_gib", "system/cpu_utilization_percentage",
        *(f"validation/{head}_{score}" for head in ("speak", "update") for score in ("precision", "recall", "f1")),
        "validation/loss", "validation/stream_turn_f1", "validation/speak_threshold_toy",
        "validation/update_threshold_toy", "run/checkpoint_seconds", "model/loss",
    }  # fmt: skip
    assert run.data.metrics["model/step"] == 60
    assert Path(run.data.tags["checkpoint"]).is_dir()
    assert code is not None
    assert run.data.tags["mlflow.source.git.commit"] == code.commit
    assert {read.dataset.name for read in run.inputs.dataset_inputs} >= {"toy/train"}
    artifacts = [file.path for at in (None, "plots") for file in tracking.client.list_artifacts(run.info.run_id, at)]
    plots = {f"plots/{name}.png" for name in ("losses", "scores", "precision_recall", "thresholds")}
    assert {"config.json", "dataset.json", "curves.json", "calibration.json"} | plots <= set(artifacts)
    composed = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/config.json")
    assert composed == config.model_dump(mode="json")

    folder = tracking.resolve("models:/prospect-dst@candidate")
    assert {"embedding", "text"} <= set(Model.load(str(folder)).signature.inputs.input_names())
    [version] = tracking.client.search_model_versions("name = 'prospect-dst'")
    assert version.tags["step"] == "60"
    assert float(version.tags["validation/speak_f1"]) == pytest.approx(result.validation["speak_f1"], rel=1e-5)
    loaded = load_model(folder)
    assert loaded.model.config.trained_steps == {"speaking": 60, "dst_update": 60, "dst_state": 60}
    assert loaded.manifest["run_name"] == "e2e"
    assert loaded.fingerprint == encoder_fingerprint(VisionSettings(**loaded.manifest["vision"]))
    calibration = json.loads((root / "runs" / "e2e" / "calibration.json").read_text())
    assert loaded.model.config.thresholds == calibration["thresholds"]
    assert calibration["thresholds"]["toy"].keys() == {"speak", "update"}
    assert {"stream_turn_f1", "stream_joint_goal_accuracy", "speak_f1"} <= result.validation.keys()
    whitening = loaded.model.mm_projector.whitening
    assert not torch.equal(whitening, torch.eye(len(whitening))), "the frames' whitening travels with the model"


def test_a_finished_run_is_returned_and_another_configuration_refused(local_ray: None, config: Config) -> None:
    assert train(config, lambda line: None).reused
    changed = config.model_copy(update={"training": config.training.model_copy(update={"learning_rate": 1e-3})})
    with pytest.raises(ConfigError, match=r"run_name` is e2e, .*training.learning_rate=0.01 and not 0.001"):
        train(changed)


@pytest.mark.long
def test_a_loss_that_is_not_finite_stops_without_a_retry(local_ray: None, config: Config) -> None:
    hot = {"run_name": "hot", "learning_rate": 1e30, "num_workers": 1, "warmup_steps": 0}
    changed = config.model_copy(update={"training": config.training.model_copy(update=hot)})
    with pytest.raises(TrainingError, match=r"is (nan|inf|not finite) at step \d+ on toy/v"):
        train(changed, lambda line: None)
    events = [event for event, _ in read_events(Path(config.storage.root) / "runs" / "hot" / "metrics.jsonl")]
    assert [event["kind"] for event in events].count("start") == 1
    client = Tracking(config.tracking, Path(config.storage.root)).client
    [experiment] = [each for each in client.search_experiments() if each.name == "prospect"]
    [run] = client.search_runs([experiment.experiment_id], filter_string="attributes.run_name = 'hot'")
    assert run.info.status == "FAILED"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(len(history)))
