"""What may go wrong on the way, each through the real job: one MLflow run is left, and every step once."""

import contextlib
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from prospect.cluster import workers
from prospect.cluster.controller import run_worker
from prospect.cluster.train import train
from prospect.errors import ConfigError, DataError, DeviceError
from prospect.tracking.settings import TrackingSettings
from prospect.tracking.tracking import Tracking
from prospect.training.settings import TrainingError
from scripts.cluster import free_port, listens
from tests.e2e.training_runs import assert_one_run, events_in, prepared, steps_in, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.long]


JOB = """
import pickle, ray, sys
from prospect.cluster.train import train
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
with open(sys.argv[1], "rb") as config:
    train(pickle.load(config))
"""


def test_a_killed_driver_is_started_again(local_ray: None, tmp_path: Path) -> None:
    """The rest is done on two workers instead of one; its course is the undisturbed one's (tests/training)."""
    config = prepared(tmp_path)
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(config))
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    driver = subprocess.Popen([sys.executable, "-c", JOB, str(tmp_path / "config.pickle")], env=environment)
    try:
        wait_for(lambda: len(steps_in(tmp_path)) > 24)
        with pytest.raises(ConfigError, match=rf"run_name` is run, a run that is active in process {driver.pid} on"):
            train(config)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    lines: list[str] = []
    more = config.training.model_copy(update={"num_workers": 2, "zero_stage": 3})
    result = train(config.model_copy(update={"training": more}), lines.append)
    assert any("of 60 on 2 CPU workers" in line and "resumed at step" in line for line in lines), lines
    assert_one_run(config, result)


def worker_on_a_failing_gpu(arguments: dict[str, Any]) -> dict[str, Any]:
    """A worker whose rank 1 loses its GPU at every thirtieth step of a process, while the file `gpu-fails` is there."""
    from prospect.training.zero import ZeroBackend

    step, job, steps = ZeroBackend.step, ray.get(arguments["job"]), itertools.count(1)

    def step_on_it(self: ZeroBackend, learning_rate: float) -> float:
        if next(steps) == 30 and ray.train.get_context().get_world_rank() and (job.folder / "gpu-fails").exists():
            raise torch.AcceleratorError("CUDA error: GPU is lost\nCUDA kernel errors might be reported later")
        return step(self, learning_rate)

    ZeroBackend.step = step_on_it  # type: ignore[method-assign]
    return run_worker(arguments)


def test_a_gpu_that_fails_in_the_middle_loses_nothing(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker goes on with another GPU from the last checkpoint; where that fails too, the next start goes on."""
    config = prepared(tmp_path, num_workers=2, save_every=10, max_failures=1)
    broken = tmp_path / "runs" / "run" / "gpu-fails"
    broken.parent.mkdir(parents=True)
    broken.touch()
    monkeypatch.setattr(workers, "run_worker", worker_on_a_failing_gpu)
    with pytest.raises(DeviceError, match=r"^the GPU of node \S+ failed \(CUDA error: GPU is lost\): look at it with"):
        train(config, print)
    assert [event["step"] for event in events_in(tmp_path) if event["kind"] == "start"] == [0, 20]
    reasons = [event["reason"] for event in events_in(tmp_path) if event["kind"] == "failure"]
    assert len(reasons) == 2
    assert all(reason.startswith("worker 1: the GPU of node") for reason in reasons), reasons
    broken.unlink()
    result = train(config, print)
    assert next(event["step"] for event in reversed(events_in(tmp_path)) if event["kind"] == "start") == 40
    assert_one_run(config, result)


def test_a_lost_embedding_is_named_with_its_store(local_ray: None, tmp_path: Path) -> None:
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
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_when_there_is_room(local_ray: None, small_disk: Path) -> None:
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
    local_ray: None,
    tmp_path: Path,
    server: tuple[str, Callable[[], subprocess.Popen[bytes]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes after the run's start, dies in the middle, and is back only when training has ended.

    Nothing is lost, and the model registered.
    """
    uri, start = server
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    config = prepared(tmp_path).model_copy(update={"tracking": TrackingSettings(uri=uri)})
    lines: list[str] = []

    def interrupt() -> None:
        wait_for(lambda: any("waiting for the tracking server" in line for line in lines))
        running = start()
        wait_for(lambda: len(steps_in(tmp_path)) > 12)
        kill(running)
        wait_for(lambda: any("finished after 60 steps" in line for line in lines))
        time.sleep(5)
        start()

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    result = train(config, lines.append)
    thread.join()
    assert any("metrics cannot be uploaded for now" in line for line in lines), lines
    assert any("metrics are uploaded again" in line for line in lines), lines
    assert_one_run(config, result)
    assert Tracking(config.tracking, tmp_path).resolve("models:/prospect-dst@candidate").is_dir()
