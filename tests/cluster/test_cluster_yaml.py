"""cluster.yaml is what Ray's cluster launcher takes, and starts Ray as submitted jobs need it."""

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())


def start_commands(cluster: dict[str, Any]) -> list[str]:
    commands = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    return [command for command in commands if "ray start" in command]


def test_rays_schema_takes_it(cluster: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)


def test_rays_launcher_takes_it(cluster: dict[str, Any]) -> None:
    """With the provider's defaults filled in, as `ray up` does first."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["available_node_types"]["gpu_worker"]["max_workers"] == cluster["max_workers"]


def test_a_schema_mistake_would_be_seen(cluster: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"setup_comands": []}, schema)


def test_every_node_starts_in_the_repository_with_its_environment_and_token(cluster: dict[str, Any]) -> None:
    commands = start_commands(cluster)
    assert len(commands) == 2
    for command in commands:
        assert command.startswith("cd ~/prospect && source .venv/bin/activate && ulimit -n 65536 && export ")
        for setting in ("RAY_AUTH_MODE=token", "PROSPECT_STORAGE_ROOT=/", "MLFLOW_TRACKING_URI=http://"):
            assert setting in command
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in commands[0]


def test_every_command_is_good_bash(cluster: dict[str, Any]) -> None:
    for key in cluster:
        for command in cluster[key] if key.endswith("_commands") else []:
            subprocess.run(["bash", "-n", "-c", command], check=True)


def test_what_is_mounted_is_there(cluster: dict[str, Any]) -> None:
    assert (REPOSITORY / cluster["file_mounts"]["~/prospect"] / "pyproject.toml").is_file()
