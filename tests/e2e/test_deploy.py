"""`serve deploy serve/serve.yaml` on all addresses: a session streams while the application changes under it."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from socket import AF_INET
from typing import Any

import httpx
import psutil
import pytest
import yaml

from prospect.client import LiveSession, ProspectClient
from prospect.protocol.messages import DurableMessage, ServerMessage
from scripts.cluster import free_port, listens
from tests.conftest import REPOSITORY
from tests.e2e.test_cluster import run, wait_until_listening
from tests.serving.models import STEPS, picture, write_model

pytestmark = pytest.mark.e2e

BIN = Path(sys.executable).parent
FPS = 4
WITHIN_S = 120


@dataclass
class Cluster:
    """A Ray of its own, on loopback, as `ray start --head` in the repository's root makes it."""

    folder: Path
    dashboard: int
    env: dict[str, str]
    port: int = field(default_factory=free_port)
    """Of Serve."""

    @property
    def root(self) -> Path:
        return self.folder / "outputs"

    def serve(self, *arguments: str) -> str:
        """What `serve ARGUMENTS` prints; it has to succeed."""
        done = run([str(BIN / "serve"), *arguments], self.env)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def deploy(self, num_engines: int, **more: Any) -> None:
        """Deploy serve/serve.yaml on all addresses, with the test's model and other arguments."""
        config = yaml.safe_load((REPOSITORY / "serve" / "serve.yaml").read_text())
        config["http_options"] |= {"host": "0.0.0.0", "port": self.port}
        [application] = config["applications"]
        model = {"serving.model": str(self.folder / "model"), "storage.root": str(self.root)}
        application["args"] = {**application["args"], **model, **more}
        [engine] = [each for each in application["deployments"] if each["name"] == "Engine"]
        engine["num_replicas"] = num_engines
        file = self.folder / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        self.serve("deploy", str(file))

    def status(self) -> dict[str, Any]:
        """The application, as Serve describes it."""
        answer = httpx.get(f"http://127.0.0.1:{self.dashboard}/api/serve/applications/", trust_env=False, timeout=30)
        return answer.json()["applications"].get("prospect", {})

    def replicas(self, deployment: str) -> set[str]:
        """Those that run; none while others start or stop."""
        found = self.status()["deployments"].get(deployment, {"replicas": []})["replicas"]
        return {each["replica_id"] for each in found if {other["state"] for other in found} == {"RUNNING"}}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder, dashboard = tmp_path_factory.mktemp("deployed"), free_port()
    write_model(folder / "model")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "PROSPECT_"))}
    env = {
        **kept,
        "PATH": f"{BIN}{os.pathsep}{kept['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{dashboard}",
    }
    session = tempfile.mkdtemp(prefix="pr", dir="/tmp")  # its sockets need a short path
    command = [
        str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=4",
        f"--port={free_port()}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}",
        f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={session}",
    ]  # fmt: skip
    head = subprocess.Popen(command, env=env, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_listening(dashboard)
        yield Cluster(folder, dashboard, env)
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            process.kill()  # asked to end, it would drain for half a minute
        head.wait()
        shutil.rmtree(session, ignore_errors=True)


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)


class Camera:
    """Streams one session, and notes what it hears."""

    def __init__(self, live: LiveSession) -> None:
        self._live, self._off = live, threading.Event()
        self.num_sent = 0
        self.heard: list[ServerMessage] = []
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._hear)]
        for thread in self._threads:
            thread.start()

    @property
    def decided(self) -> list[int]:
        return [message.seq for message in list(self.heard) if message.type == "decision"]

    def _send(self) -> None:
        while not self._off.wait(1 / FPS):
            self._live.push(picture(self.num_sent % 5))
            self.num_sent += 1
        self._live.close()

    def _hear(self) -> None:
        for message in self._live:
            self.heard.append(message)

    def goes_on(self) -> None:
        """Wait for a decision at a frame that is sent from now on."""
        latest = self.num_sent
        until(lambda: latest in self.decided)

    def stop(self) -> None:
        """Close the session, and hear the rest."""
        self._off.set()
        for thread in self._threads:
            thread.join(WITHIN_S)
            assert not thread.is_alive()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"serving.port": 9000}, "`serving.port` does nothing in a deployed application: set it in http_options"),
        ({}, "an API key is missing for a server that listens on 0.0.0.0: `prospect keys add NAME` makes one in "
             "serving.store ({root}/sessions.db)"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_of_the_status(cluster: Cluster, more: dict[str, Any], sentence: str) -> None:
    before = cluster.status().get("message")
    cluster.deploy(1, **more)
    until(lambda: cluster.status().get("status") == "DEPLOY_FAILED" and cluster.status()["message"] != before)
    said = ["Deploying app 'prospect' failed with exception:", sentence.format(root=cluster.root)]
    assert cluster.status()["message"].splitlines() == said


@pytest.fixture(scope="module")
def key(cluster: Cluster) -> str:
    """An API key, as whoever runs the application makes it."""
    done = run([str(BIN / "prospect"), "keys", "add", "test", f"storage.root={cluster.root}"], cluster.env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def own_address() -> str:
    """One that leads to this machine by another way than 127.0.0.1."""
    every = [each for addresses in psutil.net_if_addrs().values() for each in addresses if each.family == AF_INET]
    return next((each.address for each in every if not each.address.startswith("127.")), "127.0.0.2")


@pytest.fixture(scope="module")
def url(cluster: Cluster, key: str) -> str:
    """Of the application with one engine, which takes sessions."""
    cluster.deploy(1)
    url = f"http://{own_address()}:{cluster.port}"
    until(lambda: listens(cluster.port) and httpx.get(f"{url}/readyz", trust_env=False, timeout=60).status_code == 200)
    return url


def test_what_others_reach_wants_a_key(url: str, key: str) -> None:
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        assert http.get("/v1/model").status_code == 401
        answers = [http.get("/v1/model", headers={"authorization": f"Bearer {each}"}) for each in (f"{key}x", key)]
        assert [answer.status_code for answer in answers] == [401, 200]
        assert http.get("/v1/model", headers={"host": "evil.example.com"}).status_code == 403
        assert http.get("/healthz").status_code == 200


def test_the_application_is_deployed_and_a_session_streams(url: str, key: str) -> None:
    with ProspectClient(url, key=key) as client, client.live("Make tea", STEPS) as live:
        camera = Camera(live)
        try:
            camera.goes_on()
        finally:
            camera.stop()
    assert camera.decided == list(range(camera.num_sent)), "each frame is decided once"


@pytest.mark.long
def test_a_session_streams_on_while_the_application_changes(cluster: Cluster, url: str, key: str) -> None:
    [first] = cluster.replicas("Engine")
    with ProspectClient(url, key=key) as client, client.live("Make tea", STEPS) as live:
        camera = Camera(live)
        try:
            camera.goes_on()
            cluster.deploy(2)
            until(lambda: len(cluster.replicas("Engine")) == 2)
            camera.goes_on()
            assert first in cluster.replicas("Engine"), "a new number of engines replaces none"
            assert {message.type for message in camera.heard}.isdisjoint({"session.moved", "session.going_away"})

            gone = cluster.replicas("Engine") | cluster.replicas("Gateway")
            cluster.deploy(1, **{"serving.retention_hours": 12})
            until(lambda: len(cluster.replicas("Engine") - gone) == len(cluster.replicas("Gateway") - gone) == 1)
            until(lambda: cluster.status()["status"] == "RUNNING")
            camera.goes_on()
        finally:
            camera.stop()
    assert camera.decided == list(range(camera.num_sent)), "each frame is decided once"
    events = [message.event for message in camera.heard if isinstance(message, DurableMessage)]
    assert events == list(range(1, len(events) + 1))
    moved = [message for message in camera.heard if message.type == "session.moved"]
    assert moved
    assert sum(message.lost_frames for message in moved) == 0
    assert camera.heard[-1].type == "session.closed"

    cluster.serve("shutdown", "--yes")
    assert not listens(cluster.port)
