"""Training on real Ray Train with DeepSpeed: two workers, one of which is killed on the way."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from prospect.config import Config, StorageSettings
from prospect.corpus import CorpusSettings
from prospect.data.clips import ClipSettings
from prospect.data.embeddings import EmbeddingStore
from prospect.data.sources import DataSettings, to_jsonl
from prospect.errors import ConfigError
from prospect.evaluation.calibration import CalibrationSettings
from prospect.model.checkpoint import load_model
from prospect.tracking import Tracking, TrackingSettings
from prospect.training.job import train
from prospect.training.progress import read_events
from prospect.training.settings import TrainingSettings
from prospect.vision.encoder import VisionSettings, encoder_fingerprint
from tests.world import CONTEXT, MODEL, dialogue, frames

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Eight dialogues, two of them for validation, and embeddings of them."""
    root = tmp_path_factory.mktemp("root")
    vision = VisionSettings(model="prospect-tiny", weights="random:0", image_size=96)
    dialogues = [dialogue(n).model_copy(update={"split": "val" if n > 5 else "train"}) for n in range(8)]
    (root / "data").mkdir()
    (root / "data" / "dialogues.jsonl").write_text(to_jsonl(dialogues))
    store = EmbeddingStore(root / "embeddings")
    for each in dialogues:
        length = int((each.duration or 0) * 2)
        store.write(
            each.video_id,
            np.asarray(frames(each.video_id, 0, length)),
            fps=2,
            source_hash="none",
            fingerprint=encoder_fingerprint(vision),
        )
    return Config(
        storage=StorageSettings(root=str(root)),
        corpus=CorpusSettings(),
        data=DataSettings(source="dialogues", path=root / "data" / "dialogues.jsonl"),
        vision=vision,
        model=MODEL.model_copy(update={"whiten_frames": True}),
        training=TrainingSettings(
            run_name="e2e",
            num_workers=2,
            batch_size=3,
            micro_batch_size=1,
            epochs=30,
            learning_rate=1e-2,
            warmup_steps=4,
            save_every=10,
            log_every=20,
            max_failures=1,
            calibration=CalibrationSettings(grid=(0.3, 0.7), min_events=1),
            clips=ClipSettings(random_start_share=0),
        ),
        context=CONTEXT,
        tracking=TrackingSettings(),
    )


def kill_a_worker_after(file: Path, step: int, killed: list[int]) -> None:
    """SIGKILLs the process of rank 0 as soon as it has logged `step`."""
    while not killed:
        events = [event for event, _ in read_events(file)]
        if any(event["kind"] == "step" and event["step"] >= step for event in events):
            killed.append(next(event["pid"] for event in events if event["kind"] == "start"))
            os.kill(killed[0], signal.SIGKILL)
        time.sleep(0.05)


def test_a_run_survives_the_death_of_a_worker(cluster: None, config: Config) -> None:
    root = Path(config.storage.root)
    metrics = root / "runs" / "e2e" / "metrics.jsonl"
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after, args=(metrics, 24, killed), daemon=True)
    killer.start()
    lines: list[str] = []
    result = train(config, lines.append)
    assert killed
    assert (result.steps, result.reused) == (60, False)
    assert result.last_loss < 0.5 * result.first_loss
    assert result.validation["loss"] > 0
    assert any("resumed at step 20 of 60 on 2 CPU workers" in line for line in lines), lines
    assert any("step 60/60" in line for line in lines), lines

    tracking = Tracking(config.tracking, root)
    [experiment] = [e for e in tracking.client.search_experiments() if e.name == "prospect"]
    [run] = tracking.client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (result.mlflow_run, "FINISHED")
    history = tracking.client.get_metric_history(result.mlflow_run, "train/loss")
    assert sorted(metric.step for metric in history) == list(range(60)), "each step once"
    starts = tracking.client.get_metric_history(result.mlflow_run, "run/workers")
    assert [(start.step, start.value) for start in starts] == [(0, 2), (20, 2)]
    assert any(key.startswith("failure.") and "worker 0" in reason for key, reason in run.data.tags.items())
    assert run.data.metrics.keys() >= {
        "train/loss_speak", "train_labels/speak_positive", "speed/tokens_per_second", "speed/peak_memory_gib",
        "system/cpu_utilization_percentage", "validation/speak_f1", "run/checkpoint_seconds",
    }  # fmt: skip
    assert Path(run.data.tags["checkpoint"]).is_dir()
    assert {read.dataset.name for read in run.inputs.dataset_inputs} >= {"toy/train"}
    assert "plots/losses.png" in [file.path for file in tracking.client.list_artifacts(run.info.run_id, "plots")]

    loaded = load_model(tracking.resolve("models:/prospect-dst@candidate"))
    assert loaded.model.config.trained_steps == {"speaking": 60, "dst_update": 60, "dst_state": 60}
    assert loaded.manifest["run_name"] == "e2e"
    assert loaded.fingerprint == encoder_fingerprint(VisionSettings(**loaded.manifest["vision"]))
    calibration = json.loads((root / "runs" / "e2e" / "calibration.json").read_text())
    assert loaded.model.config.thresholds == calibration["thresholds"]
    assert calibration["thresholds"]["toy"].keys() == {"speak", "update"}
    assert {"stream_turn_f1", "stream_joint_goal_accuracy", "speak_f1"} <= result.validation.keys()
    whitening = loaded.model.mm_projector.whitening
    assert not torch.equal(whitening, torch.eye(len(whitening))), "the frames' whitening travels with the model"


def test_a_finished_run_is_returned_and_another_configuration_refused(cluster: None, config: Config) -> None:
    assert train(config, lambda line: None).reused
    changed = config.model_copy(update={"training": config.training.model_copy(update={"learning_rate": 1e-3})})
    with pytest.raises(ConfigError, match=r"run_name` is e2e, .*training.learning_rate=0.01 and not 0.001"):
        train(changed)


def test_a_loss_that_is_not_finite_stops_without_a_retry(cluster: None, config: Config) -> None:
    from prospect.training.settings import TrainingError

    hot = {"run_name": "hot", "learning_rate": 1e30, "num_workers": 1, "warmup_steps": 0}
    changed = config.model_copy(update={"training": config.training.model_copy(update=hot)})
    with pytest.raises(TrainingError, match=r"is (nan|inf|not finite) at step \d+ on v"):
        train(changed, lambda line: None)
    events = [event for event, _ in read_events(Path(config.storage.root) / "runs" / "hot" / "metrics.jsonl")]
    assert [event["kind"] for event in events].count("start") == 1
    client = Tracking(config.tracking, Path(config.storage.root)).client
    [experiment] = [each for each in client.search_experiments() if each.name == "prospect"]
    [run] = client.search_runs([experiment.experiment_id], filter_string="attributes.run_name = 'hot'")
    assert run.info.status == "FAILED"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(len(history)))
