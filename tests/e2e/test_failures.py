"""What may go wrong on the way, each through the real job: one MLflow run is left, and every step once."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
from mlflow.entities import Run

from prospect.config import Config, StorageSettings
from prospect.data.clips import ClipSettings
from prospect.data.embeddings import EmbeddingStore
from prospect.data.sources import DataSettings, to_jsonl
from prospect.errors import ConfigError, DataError
from prospect.tracking import Tracking, TrackingSettings
from prospect.training.job import TrainResult, train
from prospect.training.progress import read_events
from prospect.training.settings import TrainingError, TrainingSettings
from prospect.vision.encoder import VisionSettings, encoder_fingerprint
from scripts.cluster import free_port, listens
from tests.world import CONTEXT, MODEL, dialogue, frames

pytestmark = pytest.mark.e2e

VISION = VisionSettings(model="prospect-tiny", weights="random:0", image_size=96)
TRAINING = TrainingSettings(
    run_name="run",
    num_workers=1,
    batch_size=3,
    micro_batch_size=1,
    max_steps=60,
    learning_rate=1e-2,
    warmup_steps=4,
    save_every=10,
    log_every=20,
    eval_every=30,
    clips=ClipSettings(random_start_share=0),
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def prepared(root: Path, **training: object) -> Config:
    """Eight dialogues, two of them for validation, and their embeddings, below `root`."""
    dialogues = [dialogue(n).model_copy(update={"split": "val" if n > 5 else "train"}) for n in range(8)]
    (root / "dialogues.jsonl").write_text(to_jsonl(dialogues))
    store = EmbeddingStore(root / "embeddings")
    for each in dialogues:
        rows = np.asarray(frames(each.video_id, 0, int((each.duration or 0) * 2)))
        store.write(each.video_id, rows, fps=2, source_hash="none", fingerprint=encoder_fingerprint(VISION))
    return Config(
        storage=StorageSettings(root=str(root)),
        data=DataSettings(source="dialogues", path=root / "dialogues.jsonl"),
        vision=VISION,
        model=MODEL,
        training=TRAINING.model_copy(update=training),
        context=CONTEXT,
    )


def steps_in(root: Path) -> list[int]:
    events = read_events(root / "runs" / "run" / "metrics.jsonl")
    return [event["step"] for event, _ in events if event["kind"] == "step"]


def wait_for(what: Callable[[], object], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_one_run(config: Config, result: TrainResult, steps: int = 60) -> Run:
    tracking = Tracking(config.tracking, config.storage.root)
    [experiment] = [e for e in tracking.client.search_experiments() if e.name == "prospect"]
    [run] = tracking.client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (result.mlflow_run, "FINISHED")
    history = tracking.client.get_metric_history(result.mlflow_run, "train/loss")
    assert [metric.step for metric in sorted(history, key=lambda m: m.timestamp)] == list(range(steps))
    return run


JOB = """
import pickle, ray, sys
from prospect.training.job import train
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
with open(sys.argv[1], "rb") as config:
    train(pickle.load(config))
"""


def test_a_killed_driver_is_started_again(cluster: None, tmp_path: Path) -> None:
    """The rest is done on two workers instead of one; its course is the undisturbed one's (tests/training)."""
    config = prepared(tmp_path)
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(config))
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    driver = subprocess.Popen([sys.executable, "-c", JOB, str(tmp_path / "config.pickle")], env=environment)
    try:
        wait_for(lambda: len(steps_in(tmp_path)) > 24)
        with pytest.raises(ConfigError, match=rf"run_name` is run, a run that goes on now in process {driver.pid} on"):
            train(config)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    lines: list[str] = []
    more = config.training.model_copy(update={"num_workers": 2, "zero_stage": 3})
    result = train(config.model_copy(update={"training": more}), lines.append)
    assert any("of 60 on 2 CPU workers" in line and "resumed at step" in line for line in lines), lines
    assert_one_run(config, result)


def test_a_lost_embedding_is_named_with_its_store(cluster: None, tmp_path: Path) -> None:
    """In the middle of a run, which goes on in the same MLflow run once it is back, and at a start."""
    config = prepared(tmp_path)
    lost, kept = tmp_path / "embeddings" / "v3.safetensors", tmp_path / "v3.safetensors"

    def lose() -> None:
        wait_for(lambda: len(steps_in(tmp_path)) > 12)
        lost.rename(kept)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    with pytest.raises(TrainingError, match=rf"'v3' has no embedding in {tmp_path}/embeddings; run jobs/embed.py for"):
        train(config, lambda line: None)
    thread.join()
    with pytest.raises(DataError, match=rf"1 videos have no embedding in {tmp_path}/embeddings \(v3\); run jobs/embed"):
        train(config, lambda line: None)
    kept.rename(lost)
    assert_one_run(config, train(config, lambda line: None))


@pytest.mark.parametrize("small_disk", ["3m"], indirect=True)  # MLflow's database takes 1 MB of it
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_when_there_is_room(cluster: None, small_disk: Path) -> None:
    config = prepared(small_disk)
    filler = small_disk / "filler"
    lines: list[str] = []

    def fill() -> None:
        wait_for(lambda: len(steps_in(small_disk)) > 12)
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1024)):
                pass

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    with pytest.raises(TrainingError, match=r"cannot .*No space left on device.* (it|again, which) continues"):
        train(config, lines.append)
    filler.unlink()
    whole = sorted((small_disk / "runs" / "run" / "checkpoints").iterdir())
    assert whole
    assert all((folder / "checkpoint.json").is_file() for folder in whole)
    subprocess.run(["mount", "-o", "remount,size=60m", small_disk], check=True)
    result = train(config, lines.append)
    assert_one_run(config, result)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Callable[[], subprocess.Popen[bytes]]]]:
    """The URI of a tracking server, and what starts it."""
    port, started = free_port(), []
    folder = tmp_path / "server"
    folder.mkdir()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1",
        f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/artifacts",
    ]  # fmt: skip

    def start() -> subprocess.Popen[bytes]:
        started.append(
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        )
        wait_for(lambda: listens(port))
        return started[-1]

    yield f"http://127.0.0.1:{port}", start
    for process in started:
        kill(process)


def kill(server: subprocess.Popen[bytes]) -> None:
    """The server and the worker that it started, at once."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def test_a_tracking_server_that_is_gone_for_a_while(
    cluster: None, tmp_path: Path, server: tuple[str, Callable[[], subprocess.Popen[bytes]]]
) -> None:
    """It dies in the middle, and is back only when training has ended: nothing is lost, and the model registered."""
    uri, start = server
    config = prepared(tmp_path).model_copy(update={"tracking": TrackingSettings(uri=uri)})
    running = start()
    lines: list[str] = []

    def interrupt() -> None:
        wait_for(lambda: len(steps_in(tmp_path)) > 12)
        kill(running)
        wait_for(lambda: any("finished after 60 steps" in line for line in lines))
        time.sleep(5)
        start()

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    result = train(config, lines.append)
    thread.join()
    assert any("metrics are not handed on for now" in line for line in lines), lines
    assert any("metrics are handed on again" in line for line in lines), lines
    assert_one_run(config, result)
    assert Tracking(config.tracking, tmp_path).resolve("models:/prospect-dst@candidate").is_dir()
