"""How many GPUs a job asks a cluster for."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml

from prospect.cluster import gpus
from prospect.cluster.gpus import Allotment, Capacity, allot, launchable
from prospect.cluster.runtime import engine_threads, reserved_device
from prospect.config.schema import ClusterSettings
from prospect.errors import ConfigError
from prospect.streaming.kv_cache.sizing import page_size
from prospect.streaming.settings import StreamingSettings
from tests.conftest import REPOSITORY

HERE, NOW = Capacity(2, 0), Capacity(8, 1)


@pytest.fixture
def cluster(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function: what a cluster has now, and what it can have -> the Ray of this process seems to be that cluster."""

    def pretend(now: Capacity, most: Capacity | None, labels: dict[str, str] | None = None) -> None:
        monkeypatch.setattr(gpus, "owns_ray", lambda: False)
        monkeypatch.setattr(gpus, "present", lambda: now)
        monkeypatch.setattr(gpus, "largest", lambda now: most)
        monkeypatch.setattr(ray, "nodes", lambda: [{"Labels": labels or {}}])

    return pretend


def asked(settings: ClusterSettings) -> tuple[Allotment, list[str]]:
    lines: list[str] = []
    return allot(settings, "eval", lines.append), lines


def test_this_machine_without_a_gpu_says_that_its_job_runs_on_cpus(local_ray: None) -> None:
    allotment, lines = asked(ClusterSettings())
    assert allotment == Allotment(2, 0, final=True)
    assert lines == ["eval   RUNS ON CPUs: this machine has no GPU"]


def test_this_machine_refuses_gpus_that_it_has_not(local_ray: None) -> None:
    with pytest.raises(ConfigError, match=r"`cluster.gpus` \(2\) is more than this machine can have: .* no GPU;"):
        asked(ClusterSettings(gpus=2))


@pytest.mark.parametrize(
    ("now", "most", "wanted", "allotment", "line"),
    [
        (NOW, NOW, "auto", Allotment(8, 1, True), None),
        (NOW, None, "auto", Allotment(8, 1), None),
        (NOW, NOW, 0, Allotment(8, 0, True), "RUNS ON CPUs: cluster.gpus=0"),
        (HERE, HERE, "auto", Allotment(2, 0, True), "RUNS ON CPUs: the cluster has no GPU now, and its autoscaler no"),
        (HERE, None, "auto", Allotment(2, 0), "RUNS ON CPUs: the cluster has no GPU now$"),
        (HERE, Capacity(18, 4), "auto", Allotment(18, 4, True), "asks for up to 4 GPUs: .* no GPU now.* bring 4 GPUs$"),
        (HERE, Capacity(18, 4), 2, Allotment(18, 2, True), "asks for up to 2 GPUs: "),
        (HERE, Capacity(18, 4), 0, Allotment(2, 0, True), "RUNS ON CPUs: cluster.gpus=0"),
    ],
)
def test_a_job_asks_for_what_the_cluster_has_or_can_have(
    now: Capacity, most: Capacity | None, wanted: Any, allotment: Allotment, line: str | None, cluster: Any
) -> None:
    cluster(now, most)
    found, lines = asked(ClusterSettings(gpus=wanted))
    assert found == allotment
    assert len(lines) == (line is not None)
    for said in lines:
        assert re.match(f"eval   {line}", said)


@pytest.mark.parametrize("most", [HERE, Capacity(18, 4)])
def test_more_gpus_than_the_cluster_can_have_are_refused(most: Capacity, cluster: Any) -> None:
    cluster(HERE, most)
    with pytest.raises(ConfigError, match=r"^`cluster.gpus` \(9\) is more than the cluster can have: "):
        asked(ClusterSettings(gpus=9))


def test_an_autoscaler_with_unknown_nodes_is_asked_for_as_many_as_the_user_says(cluster: Any) -> None:
    """KubeRay keeps its groups of workers in Kubernetes."""
    cluster(HERE, None, {"ray.io/node-group": "headgroup"})
    assert asked(ClusterSettings(gpus=3))[0] == Allotment(2, 3)
    assert "cluster.gpus=N asks for them" in asked(ClusterSettings())[1][0]
    cluster(HERE, None)
    with pytest.raises(ConfigError, match="is more than the cluster can have: the cluster has no GPU now; lower"):
        asked(ClusterSettings(gpus=3))


def test_nodes_with_most_gpus_count_first_and_no_more_than_the_cluster_may_have() -> None:
    described = {
        "max_workers": 3,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 8}, "max_workers": 9},
            "cpus": {"resources": {"CPU": 64}},
            "gpus": {"resources": {"CPU": 16, "GPU": 4}, "max_workers": 2},
        },
    }
    assert launchable(described) == Capacity(8 + 2 * 16 + 64, 8)
    assert launchable({"available_node_types": {"head": {}}, "head_node_type": "head"}) == Capacity(0, 0)


def test_ours_can_have_four_gpus() -> None:
    """With the resources that `ray up` finds for its instance types."""
    described = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    described["available_node_types"]["head"]["resources"] = {"CPU": 8}
    described["available_node_types"]["gpu_worker"]["resources"] = {"CPU": 16, "GPU": 1}
    assert launchable(described) == Capacity(8 + 4 * 16, 4)


def test_the_launchers_file_tells_what_can_come(
    local_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpus, "owns_ray", lambda: False)
    monkeypatch.setattr(gpus, "LAUNCHER_FILE", tmp_path / "ray_bootstrap_config.yaml")
    assert gpus.largest(HERE) is None
    workers = {"head": {}, "worker": {"resources": {"GPU": 2}, "max_workers": 2}}
    described = {"max_workers": 2, "head_node_type": "head", "available_node_types": workers}
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(described))
    assert gpus.largest(HERE) == Capacity(2, 4)


def test_a_reserved_gpu_that_torch_does_not_find_names_the_node_and_the_reason(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update it.")

    assert reserved_device() == "cpu"
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    monkeypatch.setattr(torch.cuda, "init", too_old)
    with pytest.raises(
        ConfigError, match=r"^node [\d.]+ has a GPU for Ray, .* \(The NVIDIA driver .* is too old .*\): "
    ):
        reserved_device()
    monkeypatch.setattr("prospect.devices.has_gpu", lambda: True)
    assert reserved_device() == "cuda"


@pytest.mark.parametrize(("cores", "replicas", "threads"), [(2, 1, 1), (64, 1, 63), (64, 4, 15), (2, 4, 1)])
def test_an_engine_computes_with_its_share_of_the_cores(
    cores: int, replicas: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself would give it one thread."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores))
    assert engine_threads(replicas) == threads


@pytest.mark.parametrize(
    ("capability", "attention", "configured", "tokens"),
    [
        ((8, 9), "auto", None, 256),  # L4, 4090
        ((8, 6), "varlen", None, 256),  # A10G
        ((12, 0), "auto", None, 256),  # RTX of Blackwell's generation
        ((9, 0), "auto", None, 64),  # H100, H200
        ((10, 0), "varlen", None, 64),  # B200
        ((8, 9), "flex", None, 64),
        ((8, 9), "auto", 128, 128),
    ],
)
def test_a_page_is_as_large_as_the_cards_attention_needs(
    capability: tuple[int, int], attention: Any, configured: int | None, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    settings = StreamingSettings(attention=attention, page_tokens=configured)
    assert page_size(settings, torch.device("cuda")) == tokens
    assert page_size(StreamingSettings(), torch.device("cpu")) == 64
