"""serve/rayservice.yaml and jobs/rayjob.yaml are what KubeRay's CRDs take, and what this project needs of them."""

import json
import re
import shlex
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from prospect.config.load import load
from prospect.serving.config import ServeConfig
from prospect.serving.deployments import DRAINED_WITHIN_S
from prospect.serving.settings import ServingSettings
from prospect.settings import flatten
from serve.app import overrides
from tests.conftest import REPOSITORY
from tests.deploy.schemas_of import SCHEMAS, strict

FILES = {"rayservice": "serve/rayservice.yaml", "rayjob": "jobs/rayjob.yaml"}


def manifest(kind: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / FILES[kind]).read_text())


def cluster(kind: str) -> dict[str, Any]:
    spec = manifest(kind)["spec"]
    return spec["rayClusterConfig" if kind == "rayservice" else "rayClusterSpec"]


def pods(kind: str) -> dict[str, dict[str, Any]]:
    """Specs of a cluster's pods, by group."""
    of = cluster(kind)
    return {"head": of["headGroupSpec"]["template"]["spec"]} | {
        group["groupName"]: group["template"]["spec"] for group in of["workerGroupSpecs"]
    }


def checked(kind: str, content: dict[str, Any]) -> None:
    schema = json.loads((SCHEMAS / f"{kind}.json").read_text())
    jsonschema.validate(content, strict(schema))


@pytest.mark.parametrize("kind", FILES)
def test_kuberays_schema_takes_it(kind: str):
    checked(kind, manifest(kind))


@pytest.mark.parametrize("kind", FILES)
def test_a_mistake_would_be_seen(kind: str):
    for change in ({"rayVersoin": "2"}, {"enableInTreeAutoscaling": "yes"}):
        content = manifest(kind)
        content["spec"]["rayClusterConfig" if kind == "rayservice" else "rayClusterSpec"] |= change
        with pytest.raises(jsonschema.ValidationError):
            checked(kind, content)
    content = manifest(kind)
    pod = content["spec"]["rayClusterConfig" if kind == "rayservice" else "rayClusterSpec"]["headGroupSpec"]
    pod["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(jsonschema.ValidationError):
        checked(kind, content)


@pytest.mark.parametrize("kind", FILES)
def test_gpu_nodes_come_and_go_and_pods_have_what_they_need(kind: str):
    of = cluster(kind)
    assert of["rayVersion"] == ray.__version__
    assert of["enableInTreeAutoscaling"]
    assert of["authOptions"] == {"mode": "token"}
    [group] = of["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] == 4
    for name, pod in pods(kind).items():
        [container] = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/dev/shm"}
        assert {each.get("emptyDir", {}).get("medium") for each in pod["volumes"]} == {None, "Memory"}
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (name == "gpu")
        secrets = [each for each in container["env"] if re.search("PASSWORD|TOKEN|USERNAME", each["name"])]
        assert {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"} < {each["name"] for each in secrets}
        assert all("secretKeyRef" in each["valueFrom"] for each in secrets)
        assert all(
            each["valueFrom"]["secretKeyRef"].get("optional") or each["name"] == "PGPASSWORD" for each in secrets
        )


def test_the_served_application_is_one_that_loads():
    config = yaml.safe_load(manifest("rayservice")["spec"]["serveConfigV2"])
    [application] = config["applications"]
    ours = yaml.safe_load((REPOSITORY / "serve" / "serve.yaml").read_text())
    assert application["import_path"] == ours["applications"][0]["import_path"]
    assert config["http_options"]["host"] == "0.0.0.0"
    settings = load("serve", ["storage.root=/data", *overrides(application["args"])], ServeConfig)
    assert settings.serving.store == application["args"]["serving.store"]
    [group] = cluster("rayservice")["workerGroupSpecs"]
    assert settings.serving.autoscaling.max_engines == settings.cluster.gpus == group["maxReplicas"]
    assert "prospect-serve-svc" in settings.serving.allowed_hosts
    assert (
        flatten(ours["controller_options"]["runtime_env"]["env_vars"]).items()
        <= {each["name"]: each.get("value") for each in pods("rayservice")["head"]["containers"][0]["env"]}.items()
    )


@pytest.mark.parametrize("kind", FILES)
def test_a_node_that_is_dead_is_replaced(kind: str):
    for name, pod in pods(kind).items():
        [container] = pod["containers"]
        alive, ready = container["livenessProbe"], container["readinessProbe"]
        asked = alive["exec"]["command"][-1]
        assert "/api/local_raylet_healthz" in asked
        assert ("/api/gcs_healthz" in asked) == (name == "head")
        assert alive["failureThreshold"] > ready["failureThreshold"], "busy is not dead"


def test_what_the_application_needs_is_made_before_it():
    """KubeRay does not try again what was not built for want of a champion or a key."""
    page = (REPOSITORY / "docs" / "operations.md").read_text()
    [commands] = re.findall(r"```sh\n(kubectl create secret.+?)```", page, re.DOTALL)
    order = ["create secret", "jobs/rayjob.yaml", "prospect keys add", "serve/rayservice.yaml"]
    assert sorted(order, key=commands.index) == order
    [run] = re.findall(r"kubectl (run keys.+?)\nkubectl", commands, re.DOTALL)
    words = shlex.split(run)
    [service] = yaml.safe_load(manifest("rayservice")["spec"]["serveConfigV2"])["applications"]
    assert words[-1] == f"serving.store={service['args']['serving.store']}"
    [override] = [word.removeprefix("--overrides=") for word in words if word.startswith("--overrides=")]
    [given] = json.loads(override)["spec"]["containers"]
    assert given["name"] == words[1], "the pod's name is its container's"
    assert given["env"]
    assert all(each in pods("rayservice")["head"]["containers"][0]["env"] for each in given["env"])


def test_times_of_probes_and_ends_fit_what_the_application_needs():
    """Replicas have `DRAINED_WITHIN_S` to go, sessions `serving.move_seconds` to find another engine."""
    for pod in pods("rayservice").values():
        assert pod["terminationGracePeriodSeconds"] >= 2 * DRAINED_WITHIN_S
    delay = manifest("rayservice")["spec"]["rayClusterDeletionDelaySeconds"]
    assert delay >= DRAINED_WITHIN_S + ServingSettings().move_seconds
    [worker] = pods("rayservice")["gpu"]["containers"]
    ready = worker["readinessProbe"]
    unready = ready["periodSeconds"] * ready["failureThreshold"]
    stop = int(worker["lifecycle"]["preStop"]["exec"]["command"][1])
    assert unready < stop, "the service has forgotten a pod before its processes end"
    assert stop + DRAINED_WITHIN_S < pods("rayservice")["gpu"]["terminationGracePeriodSeconds"]
    assert "/-/healthz" in ready["exec"]["command"][-1], "of Serve's proxy, which says when it drains"


def test_the_job_is_one_of_the_repository_and_names_its_gpus():
    command = manifest("rayjob")["spec"]["entrypoint"].split()
    assert command[0] == "python"
    assert (REPOSITORY / command[1]).is_file()
    config = load("train", ["storage.root=/data", *command[2:]])
    [group] = cluster("rayjob")["workerGroupSpecs"]
    assert config.cluster.gpus == config.training.num_workers == group["maxReplicas"]
