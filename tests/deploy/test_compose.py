"""deploy/compose.yaml is what the compose specification takes, and fits what its services need."""

import json
import os
import re
import shutil
import subprocess
from typing import Any

import jsonschema
import pytest
import yaml

from prospect.serving.deployments import DRAINED_WITHIN_S
from tests.conftest import REPOSITORY
from tests.deploy.schemas_of import SCHEMAS
from tests.needs import skip_without

FILE = REPOSITORY / "deploy" / "compose.yaml"
GIVEN = {"POSTGRES_PASSWORD": "p", "RAY_AUTH_TOKEN": "t" * 32}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def test_the_specification_takes_it(compose: dict[str, Any]):
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text())
    jsonschema.validate(compose, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(compose | {"servcies": {}}, schema)


def test_docker_takes_it():
    docker = shutil.which("docker")
    skip_without(
        "docker", docker and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0
    )
    command = ["docker", "compose", "-f", str(FILE), "config", "--quiet"]
    subprocess.run(command, env=os.environ | GIVEN, check=True)


def test_services_wait_for_those_that_they_need(compose: dict[str, Any]):
    services = compose["services"]
    assert set(services) == {"postgres", "mlflow", "ray-head", "serve"}
    needs = {name: set(each.get("depends_on", ())) for name, each in services.items()}
    assert needs == {"postgres": set(), "mlflow": {"postgres"}, "ray-head": {"mlflow"}, "serve": {"ray-head"}}
    for each in services.values():
        assert "healthcheck" in each
        assert all(need["condition"] == "service_healthy" for need in each.get("depends_on", {}).values())


def test_ray_has_shared_memory_and_serve_the_time_to_end(compose: dict[str, Any]):
    services = compose["services"]
    assert services["ray-head"]["shm_size"] == "4gb"
    assert services["serve"]["shm_size"] == "1gb"
    assert services["serve"]["stop_signal"] == "SIGINT", "`serve run` ends in order with Ctrl-C"
    assert int(services["serve"]["stop_grace_period"].removesuffix("s")) > DRAINED_WITHIN_S


def test_documented_commands_use_the_cluster_and_the_services_that_are_there(compose: dict[str, Any]):
    """A job that is no submission, and has no RAY_ADDRESS, would start a Ray of its own inside the container."""
    head = FILE.read_text().partition("\nname:")[0].replace("\\\n#", "")
    commands = re.findall(r"docker compose -f deploy/compose\.yaml (?:exec|run --rm) ([\w-]+) (.+)", head)
    assert {service for service, _ in commands} <= set(compose["services"])
    trainings = [command for _, command in commands if "jobs/" in command]
    assert trainings
    assert all(command.startswith("ray job submit -- python jobs/") for command in trainings)


def test_the_port_is_where_serve_always_has_a_proxy(compose: dict[str, Any]):
    """On the head; a node without replicas has none (`ServeController._update_proxy_nodes`)."""
    ports = {name: each.get("ports", []) for name, each in compose["services"].items()}
    assert {name for name, given in ports.items() if "127.0.0.1:8000:8000" in given} == {"ray-head"}
    serve = compose["services"]["serve"]
    assert "http://ray-head:8000/healthz" in serve["healthcheck"]["test"]
    assert "'serving.allowed_hosts=[ray-head]'" in serve["command"][-1], "a name, which Host is checked for"


def test_no_secret_stands_in_it_and_no_port_is_open_to_others(compose: dict[str, Any]):
    for name, each in compose["services"].items():
        for key, value in each["environment"].items():
            if re.search("PASSWORD|TOKEN", key):
                assert re.fullmatch(r"\$\{[A-Z_]+:\?.+\}", value), (name, key)
        assert all(port.startswith("127.0.0.1:") for port in each.get("ports", []))
        assert "PASSWORD" not in str(each.get("command"))
