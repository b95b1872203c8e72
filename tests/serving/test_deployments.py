"""What the application asks of Ray, and what it refuses before anything starts."""

import pytest

from prospect.cluster.gpus import Allotment
from prospect.config.load import load
from prospect.errors import ConfigError
from prospect.serving.config import ServeConfig
from prospect.serving.deployments import Site
from prospect.serving.requirements import check_store, shares, store_url


def config(*settings: str) -> ServeConfig:
    return load("serve", ["storage.root=/data", *settings], ServeConfig)


@pytest.mark.parametrize(
    ("settings", "gpus", "images", "expected"),
    [
        ([], 1, True, (0.8, 0.2)),
        ([], 1, False, (1.0, 0.0)),
        (["serving.gpus_per_encoder=0.5"], 1, True, (0.5, 0.5)),
        (["serving.gpus_per_encoder=1"], 2, True, (1.0, 1.0)),
        (["serving.num_replicas=2", "serving.num_encoders=2"], 2, True, (0.8, 0.2)),
        ([], 0, True, (0.0, 0.0)),
    ],
)
def test_on_one_gpu_engine_and_encoder_share_it(settings: list[str], gpus: int, images: bool, expected: tuple):
    found = shares(config(*settings), Allotment(16, gpus, True), images)
    assert (found.engine_gpus, found.encoder_gpus) == expected


@pytest.mark.parametrize(
    ("settings", "gpus"),
    [
        (["serving.num_replicas=3"], 2),
        (["serving.gpus_per_encoder=1"], 1),
        (["serving.num_encoders=2"], 1),
    ],
)
def test_more_engines_and_encoders_than_gpus_are_refused(settings: list[str], gpus: int):
    with pytest.raises(ConfigError, match=rf"`serving.num_replicas` .* need more than the {gpus} GPUs"):
        shares(config(*settings), Allotment(16, gpus, True), images=True)


def test_the_kv_cache_leaves_the_encoder_its_share_of_a_gpu():
    assert Site(config(), "secret", True, 0.5).streaming.memory_share == 0.5
    assert Site(config(), "secret", True, 1.0).streaming.memory_share == 0.8
    assert Site(config(), "secret", True).streaming == config().streaming


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
