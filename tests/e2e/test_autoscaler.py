"""Every job on a cluster like that of cluster.yaml: a head without GPUs, and GPU workers that the autoscaler starts.

The autoscaler is Ray's own, with its fake provider: a node is a raylet on this machine that claims to have a GPU. A job
that is placed on one ends with the sentence for a GPU that torch does not find.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray
import yaml
from ray import serve
from ray.autoscaler._private.util import prepare_config

from prospect.cluster import gpus
from prospect.cluster.embed import embed_videos
from prospect.cluster.evaluate import evaluate_model
from prospect.cluster.label import make_labels
from prospect.cluster.runtime import disconnect
from prospect.cluster.train import train
from prospect.config.schema import ClusterSettings, Config
from prospect.errors import ConfigError
from prospect.serving.config import ServeConfig
from prospect.serving.deployments import launch
from prospect.serving.settings import ServingSettings
from prospect.vision.report import VideoSource
from prospect.vision.settings import VisionSettings
from scripts.cluster import free_port
from tests.conftest import REPOSITORY
from tests.earlier import config_of, unpack
from tests.vision.videos import write_video

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(600)]

HEAD = "ray.head.default"
"""The fake provider's name of a head."""
ON_ONE_MACHINE = {"use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True}
RAY = str(Path(sys.executable).with_name("ray"))


class FakeCluster(NamedTuple):
    address: str
    home: Path
    """Folder in which the launcher left the cluster's description."""


def described(address: str) -> dict[str, Any]:
    """Our cluster.yaml as `ray up` leaves it on the head, on the fake provider, with two small workers at most."""
    ours = prepare_config(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text()))
    assert ours["available_node_types"]["gpu_worker"]["min_workers"] == 0
    types = {
        HEAD: {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 0},
        "gpu_worker": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    }
    return ours | {
        "provider": {"type": "fake_multinode", "gcs_address": address, **ON_ONE_MACHINE},
        "file_mounts": {},
        "max_workers": 2,
        "idle_timeout_minutes": 0.02,
        "head_node_type": HEAD,
        "available_node_types": types,
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeCluster]:
    """Its head; this process is a job's driver there."""
    ray.shutdown()  # what other tests share
    folder = tmp_path_factory.mktemp("autoscaler")
    address = f"127.0.0.1:{free_port()}"
    file = folder / "ray_bootstrap_config.yaml"
    file.write_text(yaml.safe_dump(described(address)))
    # A socket's path has at most 107 characters.
    temporary = Path(f"/tmp/prospect-autoscaler-{os.getpid()}")
    command = [
        RAY, "start", "--head", "--node-ip-address=127.0.0.1", f"--port={address.split(':')[1]}", "--num-cpus=2",
        "--include-dashboard=false", f"--autoscaling-config={file}", f"--temp-dir={temporary}", "--block",
    ]  # fmt: skip
    fake = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
    head = subprocess.Popen(command, env={**os.environ, **fake}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", address)
        patch.setattr(gpus, "LAUNCHER_FILE", file)
        until(lambda: (temporary / "session_latest" / "logs" / "monitor.log").is_file())
        yield FakeCluster(address, folder)
        serve.shutdown()
        disconnect()
    head.terminate()
    head.wait(60)


@pytest.fixture
def no_gpu(cluster: FakeCluster) -> None:
    """The cluster as a job finds it: the one before has ended, and the workers are gone."""
    disconnect()
    gpus.connect()
    until(lambda: not gpu_nodes())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("earlier") / "root")


def until(reached: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.2)


def gpu_nodes() -> list[str]:
    return [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]


def embed(root: Path, settings: ClusterSettings, report: Callable[[str], None]) -> None:
    video = root / "one.mp4"
    write_video(video, [index / 30 for index in range(90)])
    tiny = VisionSettings(model="prospect-tiny", weights="random:0", image_size=64)
    store = f"{root}/embedded-{settings.gpus}"
    embed_videos([VideoSource("one", str(video))], tiny, store, None, settings, report_line=report)


def served(config: Config) -> ServeConfig:
    folder = f"{config.storage.root}/runs/finished/model"
    return ServeConfig(**dict(config), serving=ServingSettings(model=folder, port=free_port(), durability="none"))


def with_gpus(root: Path, settings: ClusterSettings, run_name: str = "finished", **training: Any) -> Config:
    config = config_of(root, run_name)
    changed = config.training.model_copy(update=training)
    return config.model_copy(update={"cluster": settings, "training": changed})


def evaluated(root: Path, settings: ClusterSettings) -> Config:
    config = with_gpus(root, settings)
    evaluation = config.evaluation.model_copy(update={"model": f"{root}/runs/finished/model"})
    return config.model_copy(update={"evaluation": evaluation})


JOBS: dict[str, Callable[[Path, ClusterSettings, Callable[[str], None]], object]] = {
    "embed": embed,
    "train": lambda root, settings, report: train(
        with_gpus(root, settings, f"on-{settings.gpus}", num_workers=2), report
    ),
    "eval": lambda root, settings, report: evaluate_model(evaluated(root, settings), report),
    "serve": lambda root, settings, report: launch(served(with_gpus(root, settings)), report=report),
}

NODES = {"embed": 1, "train": 2, "eval": 2, "serve": 1}
"""One for the only video, two for two workers, two for three groups of dialogues, one for an engine."""


@pytest.mark.parametrize("job", JOBS)
def test_a_job_makes_the_autoscaler_bring_gpus_and_is_placed_on_them(no_gpu: None, root: Path, job: str) -> None:
    lines: list[str] = []
    with pytest.raises(ConfigError, match=r"node .* has a GPU for Ray, but torch finds none there"):
        JOBS[job](root, ClusterSettings(), lines.append)
    wait = "asks for up to 2 GPUs: the cluster has no GPU now, and its autoscaler can bring 2 GPUs"
    assert f"{job:6} {wait}" in lines
    assert len(gpu_nodes()) == NODES[job]


@pytest.mark.parametrize("job", JOBS)
def test_with_no_gpus_wanted_a_job_stays_on_cpus_and_ends_well(no_gpu: None, root: Path, job: str) -> None:
    lines: list[str] = []
    JOBS[job](root, ClusterSettings(gpus=0), lines.append)
    assert f"{job:6} RUNS ON CPUs: cluster.gpus=0" in lines
    assert not gpu_nodes()


def test_serve_run_joins_the_cluster_that_its_own_option_names(no_gpu: None, cluster: FakeCluster, root: Path) -> None:
    """As a process of its own, which knows the cluster by `--address` alone."""
    model = f"serving.model={root}/runs/finished/model"
    settings = [f"storage.root={root}", model, f"serving.port={free_port()}", "serving.durability=none"]
    command = [str(Path(RAY).with_name("serve")), "run", f"--address={cluster.address}", "serve.app:app", *settings]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**environment, "HOME": str(cluster.home)}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "serve  asks for up to 2 GPUs: the cluster has no GPU now" in done.stdout
    own = [
        line for line in done.stderr.splitlines() if "pid=" not in line
    ]  # Ray forwards what other jobs' actors print
    assert any("Error: node " in line and "has a GPU for Ray, but torch finds none there" in line for line in own)
    assert not any("Traceback" in line for line in own)


def test_labels_need_no_gpu(no_gpu: None, root: Path) -> None:
    assert make_labels(config_of(root), lambda line: None).metrics()
    assert not gpu_nodes()


def test_more_gpus_than_its_node_types_have_are_refused(no_gpu: None, root: Path) -> None:
    with pytest.raises(ConfigError, match=r"`cluster.gpus` \(3\) is more than the cluster can have"):
        embed(root, ClusterSettings(gpus=3), print)
    replicas = served(with_gpus(root, ClusterSettings()))
    serving = replicas.serving.model_copy(update={"num_replicas": 3})
    with pytest.raises(ConfigError, match=r"`serving.num_replicas` \(3\) .* more than the 2 GPUs"):
        launch(replicas.model_copy(update={"serving": serving}))
    with pytest.raises(ConfigError, match=r"`training.num_workers` \(3\) is more than the 2 GPUs"):
        train(with_gpus(root, ClusterSettings(), "three", num_workers=3))
    assert not gpu_nodes()
