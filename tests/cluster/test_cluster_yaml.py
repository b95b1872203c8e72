"""cluster.yaml is what Ray's cluster launcher takes, and starts Ray as submitted jobs need it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import psycopg
import pytest
import ray.autoscaler
import yaml
from mlflow import MlflowClient, MlflowException

from scripts.cluster import free_port, listens
from tests.conftest import REPOSITORY
from tests.e2e.training_runs import wait_for
from tests.postgres import database

OPERATIONS = (REPOSITORY / "docs" / "operations.md").read_text()


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
        assert command.startswith("source ~/prospect/env.sh && ulimit -n 65536 && ray start ")
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in commands[0]


def test_every_shell_gets_the_environment_the_secrets_and_the_places(cluster: dict[str, Any], tmp_path: Path) -> None:
    """What `env.sh` is written by, run in a home of its own."""
    (tmp_path / "prospect" / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "prospect" / ".venv" / "bin" / "activate").write_text("export ACTIVE=yes\n")
    (tmp_path / "prospect.env").write_text("HF_TOKEN=hf_secret\n")
    write = next(command for command in cluster["setup_commands"] if "env.sh" in command)
    shell = f"{write}; source ~/prospect/env.sh; pwd; env"
    told = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "RAY_HEAD_IP": "10.0.0.7"}
    printed = subprocess.run(["bash", "-c", shell], env=told, check=True, capture_output=True, text=True).stdout
    assert {
        str(tmp_path / "prospect"), "ACTIVE=yes", "HF_TOKEN=hf_secret", "RAY_AUTH_MODE=token",
        "PROSPECT_STORAGE_ROOT=/mnt/prospect", "MLFLOW_TRACKING_URI=http://10.0.0.7:5000",
    } <= set(printed.splitlines())  # fmt: skip


def test_the_head_may_read_the_parameter_that_names_the_workers_image(cluster: dict[str, Any]) -> None:
    """The role that Ray makes for a head may not, so that the head has a profile of the user's."""
    head, worker = (cluster["available_node_types"][name]["node_config"] for name in ("head", "gpu_worker"))
    assert worker["ImageId"].startswith("resolve:ssm:")
    assert head["IamInstanceProfile"] == {"Name": "prospect-head"}
    assert "--role-name prospect-head --policy-arn arn:aws:iam::aws:policy/AmazonSSMReadOnlyAccess" in OPERATIONS


def test_a_node_has_what_attention_kernels_are_compiled_with(cluster: dict[str, Any]) -> None:
    [install] = [command for command in cluster["initialization_commands"] if "apt-get install" in command]
    assert {"gcc", "python3-dev", "make"} <= set(install.split())


LOGIN = {"MLFLOW_TRACKING_USERNAME": "prospect", "MLFLOW_TRACKING_PASSWORD": "a password of a test"}
"""As in ~/prospect.env."""


@pytest.mark.e2e
def test_the_heads_mlflow_has_a_login_and_keeps_its_runs_in_postgresql(
    cluster: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command as it stands, with a database by URL, on a free port."""
    [command] = [command for command in cluster["head_start_ray_commands"] if "mlflow server" in command]
    [write] = [command for command in cluster["head_start_ray_commands"] if "> ~/mlflow_auth.ini" in command]
    started = command[command.index("MLFLOW_AUTH_CONFIG") : command.index("> ~/mlflow.log")].replace("nohup", "exec")
    port = free_port()
    started = started.replace("--port 5000", f"--port {port}").replace("/mnt/prospect", str(tmp_path))
    with database() as url:
        told = {**os.environ, "MLFLOW_DATABASE": url, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        told |= {"HOME": str(tmp_path), **LOGIN}
        told["PATH"] = f"{Path(sys.executable).parent}:{told['PATH']}"
        server = subprocess.Popen(["bash", "-c", f"{write}; {started}"], env=told, start_new_session=True)
        try:
            client = MlflowClient(f"http://127.0.0.1:{port}")
            wait_for(lambda: listens(port), 120)
            with pytest.raises(MlflowException, match="not authenticated"):
                client.search_experiments()
            for name, value in LOGIN.items():
                monkeypatch.setenv(name, value)
            experiment = client.create_experiment("kitchen")
            run = client.create_run(experiment)
            client.log_metric(run.info.run_id, "loss", 0.5)
            assert client.get_run(run.info.run_id).data.metrics == {"loss": 0.5}
            with psycopg.connect(url.replace("+psycopg", "")) as connection:
                assert connection.execute("select value from metrics").fetchall() == [(0.5,)]
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(60)


def test_every_command_is_good_bash(cluster: dict[str, Any]) -> None:
    for key in cluster:
        for command in cluster[key] if key.endswith("_commands") else []:
            subprocess.run(["bash", "-n", "-c", command], check=True)


def test_what_is_mounted_is_there(cluster: dict[str, Any]) -> None:
    assert (REPOSITORY / cluster["file_mounts"]["~/prospect"] / "pyproject.toml").is_file()
