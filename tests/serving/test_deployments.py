"""What the application asks of Ray, and what it refuses before anything starts."""

import socket
from pathlib import Path

import pytest

from prospect.cluster.gpus import Allotment
from prospect.config.load import load
from prospect.errors import ConfigError
from prospect.serving.access.keys import new_key
from prospect.serving.config import ServeConfig
from prospect.serving.deployments import Site
from prospect.serving.requirements import (
    Shares,
    check_autoscaling,
    check_keys,
    check_port,
    check_store,
    shares,
    store_url,
)
from prospect.serving.store import KeyTable

REPLICAS = "serving.num_replicas"


def config(*settings: str) -> ServeConfig:
    return load("serve", ["storage.root=/data", *settings], ServeConfig)


@pytest.mark.parametrize(
    ("settings", "gpus", "images", "engine", "encoder"),
    [
        ([], 1, True, 0.8, 0.2),
        ([], 1, False, 1.0, 0.0),
        (["serving.gpus_per_encoder=0.5"], 1, True, 0.5, 0.5),
        (["serving.gpus_per_encoder=1"], 2, True, 1.0, 1.0),
        (["serving.num_replicas=2", "serving.num_encoders=2"], 2, True, 0.8, 0.2),
        ([], 0, True, 0.0, 0.0),
    ],
)
def test_on_one_gpu_engine_and_encoder_share_it(settings, gpus: int, images: bool, engine: float, encoder: float):
    assert shares(config(*settings), Allotment(1, gpus), images) == Shares(engine, encoder)


@pytest.mark.parametrize(
    ("settings", "cpus", "gpus", "has_spare"),
    [
        ([], 1.5, 0, False),
        ([], 1.6, 0, True),
        (["serving.num_replicas=3"], 2, 0, False),
        (["serving.autoscaling.max_engines=3"], 2, 0, False),
        ([], 8, 1, False),
        ([], 8, 2, True),
        (["serving.gpus_per_encoder=1"], 8, 3, False),
    ],
)
def test_a_new_version_starts_first_where_there_is_room(settings, cpus: float, gpus: int, has_spare: bool):
    assert shares(config(*settings), Allotment(cpus, gpus), images=True).has_spare is has_spare


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        (["serving.num_replicas=3"], 2),
        (["serving.gpus_per_encoder=1"], 1),
        (["serving.num_encoders=2"], 1),
        (["serving.autoscaling.max_engines=3"], 2),
    ],
)
def test_more_engines_and_encoders_than_gpus_are_refused(settings: list[str], gpus: int):
    with pytest.raises(ConfigError, match=rf"`serving\.\S+` .* need more than the {gpus} GPUs") as refused:
        shares(config(*settings), Allotment(8, gpus), images=True)
    assert refused.value.field == ("serving.autoscaling.max_engines" if "max_engines" in settings[0] else REPLICAS)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["target_sessions=4"], "`serving.autoscaling.target_sessions` does nothing while .*max_engines` is null"),
        (["min_engines=3", "max_engines=2"], r"min_engines` \(3\) must not exceed .*max_engines` \(2\)"),
        (
            ["min_engines=2", "max_engines=4"],
            r"num_replicas` \(1\), the engines at the start, must be .* \(2\) to",
        ),
        (["max_engines=2", "target_sessions=65"], r"target_sessions` \(65\) must not exceed .*max_sessions` \(64\)"),
    ],
)
def test_numbers_of_engines_that_do_not_fit_are_refused(settings: list[str], says: str):
    with pytest.raises(ConfigError, match=says) as refused:
        check_autoscaling(config(*(f"serving.autoscaling.{each}" for each in settings)))
    assert "\n" not in str(refused.value)


def test_numbers_of_engines_that_fit():
    check_autoscaling(config())
    check_autoscaling(config("serving.autoscaling.max_engines=4", "serving.num_replicas=2"))


def test_the_kv_cache_leaves_the_encoder_its_share_of_a_gpu():
    assert Site(config(), "secret", True, "127.0.0.1", False, 0.5).streaming.memory_share == 0.5
    assert Site(config(), "secret", True, "127.0.0.1", False, 1.0).streaming.memory_share == 0.8
    assert Site(config(), "secret", True, "127.0.0.1", False).streaming == config().streaming


def test_where_sessions_are_stored():
    assert store_url(config()) == "sqlite:////data/sessions.db"
    assert store_url(config("serving.store=postgresql://me@host/db")) == "postgresql://me@host/db"
    with pytest.raises(ConfigError, match=r"`serving.store` is missing: storage.root .* is a URL"):
        store_url(config("storage.root=s3://bucket/prospect"))


@pytest.mark.parametrize(
    ("settings", "one_node", "field"),
    [
        (["serving.durability=none", "serving.num_gateways=2"], True, "serving.num_gateways"),
        ([], False, "serving.store"),
    ],
)
def test_gateways_that_could_not_know_of_each_others_sessions_are_refused(settings, one_node, field):
    with pytest.raises(ConfigError) as refused:
        check_store(config(*settings), one_node)
    assert refused.value.field == field
    check_store(config(*settings, "serving.num_gateways=1", "serving.store=postgresql://me@host/db"), one_node)


@pytest.fixture
def keyless(tmp_path: Path) -> list[str]:
    return [f"storage.root={tmp_path}"]


def test_a_server_on_loopback_needs_no_key_unless_told(keyless: list[str]):
    assert not check_keys(load("serve", keyless, ServeConfig), "127.0.0.1")
    assert not check_keys(load("serve", [*keyless, "serving.keys.required=false"], ServeConfig), "::1")
    with pytest.raises(ConfigError, match="an API key is missing for a server that listens on"):
        check_keys(load("serve", [*keyless, "serving.keys.required=true"], ServeConfig), "127.0.0.1")


@pytest.mark.parametrize("bound", ["0.0.0.0", "192.168.1.5", "::", "camera.example.com"])
def test_a_server_that_others_reach_does_not_start_without_keys(keyless: list[str], tmp_path: Path, bound: str):
    config = load("serve", keyless, ServeConfig)
    with pytest.raises(ConfigError, match=f"listens on {bound}: `prospect keys add NAME` makes one in serving.store"):
        check_keys(config, bound)
    with pytest.raises(ConfigError, match=rf"`serving.keys.required` \(false\) must be left out .* {bound}"):
        check_keys(load("serve", [*keyless, "serving.keys.required=false"], ServeConfig), bound)
    table = KeyTable(store_url(config))
    row = new_key("tablet")[1]
    table.add(row)
    assert check_keys(config, bound)
    assert check_keys(load("serve", [*keyless, "serving.durability=none"], ServeConfig), bound)
    table.revoke(row.key_id, 0.0)
    with pytest.raises(ConfigError, match="an API key is missing"):
        check_keys(config, bound)


def test_keys_in_a_file_of_one_node_are_refused_on_several():
    without_store = config("serving.durability=none")
    check_store(without_store, one_node=False)
    check_store(without_store, one_node=True, needs_key=True)
    with pytest.raises(ConfigError, match=r"`serving\.store` must be a PostgreSQL database"):
        check_store(without_store, one_node=False, needs_key=True)


def test_a_port_that_another_program_has_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"\(127.0.0.1:{port}\) cannot be listened on .*already in use"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(ConfigError, match=r"\(192.0.2.77:8000\) cannot be listened on"):
        check_port("192.0.2.77", 8000)
