"""Jobs on a cluster that grows, shrinks and loses its nodes."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from prospect.cluster import workers
from prospect.cluster.embed import embed_videos
from prospect.cluster.runtime import disconnect
from prospect.cluster.train import train
from prospect.data.embeddings import EmbeddingStore
from prospect.evaluation.settings import CalibrationSettings
from prospect.training.result import TrainResult
from prospect.vision.report import VideoSource
from prospect.vision.settings import VisionSettings
from tests.e2e.training_runs import assert_one_run, events_in, prepared, steps_in, wait_for
from tests.vision.videos import flat_picture, write_video

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """One node with one CPU. Ray Train looks for more, and gives up one that is gone, in seconds, not in a minute."""
    ray.shutdown()  # what other tests share
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "8")
    monkeypatch.setattr(workers, "ScalingConfig", partial(workers.ScalingConfig, elastic_resize_monitor_interval_s=3))
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    monkeypatch.setitem(os.environ, "RAY_ADDRESS", started.address)
    ray.init(address=started.address, log_to_driver=False)
    yield started
    ray.shutdown()
    started.shutdown()


def test_a_run_grows_and_shrinks_with_its_cluster(cluster: Cluster, tmp_path: Path) -> None:
    """A node comes, and goes in the middle of a step: the other worker goes on from the last checkpoint."""
    config = prepared(
        tmp_path,
        num_workers=2,
        min_workers=1,
        max_steps=300,
        save_every=20,
        eval_every=300,
        log_every=100,
        calibration=CalibrationSettings(enabled=False),
    )
    lines: list[str] = []
    results: list[TrainResult] = []
    running = threading.Thread(target=lambda: results.append(train(config, lines.append)), daemon=True)
    running.start()
    wait_for(lambda: len(steps_in(tmp_path)) > 25, 300)  # with a checkpoint to go on from
    node = cluster.add_node(num_cpus=1)
    wait_for(lambda: "of 300 on 2 CPU workers" in " ".join(lines), 300)
    done = len(steps_in(tmp_path))
    wait_for(lambda: len(steps_in(tmp_path)) > done + 20, 300)
    cluster.remove_node(node)
    running.join(timeout=600)
    starts = [event["workers"] for event in events_in(tmp_path) if event["kind"] == "start"]
    assert starts == [1, 2, 1]
    assert_one_run(config, results[0], 300)


@pytest.fixture
def lonely(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head that computes nothing; its only worker node comes and goes with the test."""
    ray.shutdown()  # what other tests share
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "8")
    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    monkeypatch.setitem(os.environ, "RAY_ADDRESS", started.address)
    yield started
    disconnect()
    started.shutdown()


def test_a_run_goes_on_when_its_only_node_is_back(lonely: Cluster, tmp_path: Path) -> None:
    node = lonely.add_node(num_cpus=1)
    settings = CalibrationSettings(enabled=False)
    config = prepared(tmp_path, num_workers=1, max_steps=150, save_every=20, eval_every=150, calibration=settings)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(train, config, lambda line: None)
        wait_for(lambda: len(steps_in(tmp_path)) > 25, 300)
        lonely.remove_node(node)
        done = len(steps_in(tmp_path))
        lonely.add_node(num_cpus=1)
        result = running.result(240)
    assert done < 150
    assert [event["workers"] for event in events_in(tmp_path) if event["kind"] == "start"] == [1, 1]
    assert_one_run(config, result, 150)


def test_embedding_goes_on_when_its_only_node_is_back(lonely: Cluster, tmp_path: Path) -> None:
    node = lonely.add_node(num_cpus=2)
    pictures = [flat_picture(index) for index in range(400)]
    videos = [VideoSource(f"v{number}", str(tmp_path / f"v{number}.mp4")) for number in range(8)]
    for video in videos:
        write_video(Path(video.path), [index / 2 for index in range(400)], pictures, rate=2)
    tiny = VisionSettings(model="prospect-tiny", weights="random:0", image_size=64, batch_size=16)
    store = EmbeddingStore(str(tmp_path / "store"))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(embed_videos, videos, tiny, store.root)
        wait_for(lambda: len(list((tmp_path / "store").glob("*.safetensors"))) > 1, 120)
        lonely.remove_node(node)
        done = len(list((tmp_path / "store").glob("*.safetensors")))
        lonely.add_node(num_cpus=2)
        report = running.result(120)
    assert done < 8
    assert (report.count("done"), report.count("quarantined")) == (8, 0)
    assert {store.num_frames(video.video_id) for video in videos} == {400}
