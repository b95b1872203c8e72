"""What `serve run` prints, and how it ends: no stack traces where clients come and go, nor at Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from prospect.client import LiveSession, ProspectClient, ServerError
from prospect.protocol.messages import ServerMessage
from prospect.serving.access.keys import new_key
from prospect.serving.store import KeyTable
from scripts.cluster import free_port
from tests.conftest import REPOSITORY
from tests.listening import family, files_with, listeners, reachable, session_folder
from tests.postgres import PROGRAMS, database
from tests.serving.models import ALWAYS, STEPS, picture, write_model

pytestmark = pytest.mark.e2e

PASSWORD = "the-database-has-this-password"
NOBODY = "no-such-session"
READY_WITHIN_S, ENDS_WITHIN_S = 180, 40
"""The second on a machine that has other tests to run; alone it is 5."""


@dataclass
class Console:
    """A terminal in which somebody has typed `serve run`."""

    process: subprocess.Popen[bytes]
    file: Path
    url: str
    key: str
    """Of a client."""
    secrets: list[str]
    """What no log may hold."""

    @property
    def printed(self) -> str:
        return self.file.read_text(errors="replace")

    def press_ctrl_c(self) -> float:
        """Interrupt whatever runs in the terminal; returns the seconds until it has ended."""
        began = time.monotonic()
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(READY_WITHIN_S)
        return time.monotonic() - began


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """URL of a database, with a password where the machine has one that takes it."""
    if not (PROGRAMS[-1] / "initdb").is_file():
        yield f"sqlite:///{tmp_path}/sessions.db"
        return
    with database() as url:
        yield url.replace("+psycopg", "").replace("@", f":{PASSWORD}@", 1)


@pytest.fixture
def console(tmp_path: Path, store: str) -> Iterator[Console]:
    """With keys, on a Ray of its own."""
    port, file = free_port(), tmp_path / "printed"
    key, row = new_key("console")
    KeyTable(store).add(row)
    command = [
        str(Path(sys.executable).with_name("serve")), "run", "serve.app:app", f"storage.root={tmp_path}",
        f"serving.model={write_model(tmp_path / 'model')}", f"serving.port={port}", f"serving.store={store}",
        "serving.keys.required=true",
    ]  # fmt: skip
    own = ("RAY_ADDRESS", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    env = {name: value for name, value in os.environ.items() if name not in own}
    with file.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=env, stdout=output, stderr=output, start_new_session=True
        )
    console = Console(process, file, f"http://127.0.0.1:{port}", key, [key.split("_", 2)[2], PASSWORD])
    try:
        wait_until_ready(console)
        yield console
    finally:
        if process.poll() is None:
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()
            process.wait()


def wait_until_ready(console: Console) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and console.process.poll() is None:
        try:
            if httpx.get(f"{console.url}/readyz", trust_env=False, timeout=READY_WITHIN_S).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(console.printed)


def leave(client: ProspectClient, closes: bool, speaks: bool) -> None:
    """Stream a session and close it, or leave it while the server has something to say."""
    with client.live("Make tea", STEPS, thresholds=ALWAYS, reconnect=False) as live:
        for index in range(4):
            live.push(picture(index))
        if closes:
            live.close()
            assert list(live)[-1].type == "session.closed"
        elif speaks:
            live.receive(60)


def listen(live: LiveSession, heard: list[ServerMessage | ServerError]) -> None:
    try:
        heard.extend(live)
    except ServerError as error:
        heard.append(error)


def make_mistakes(console: Console) -> None:
    """With secrets in them, of which one is nearly right."""
    for wrong in (f"{console.key}x", console.secrets[0]):
        with (
            ProspectClient(console.url, key=wrong) as client,
            pytest.raises(ServerError, match="was revoked"),
        ):
            client.model()
    with ProspectClient(console.url, key=console.key) as client, pytest.raises(ServerError, match="no session"):
        client.view(NOBODY)


def socket_of(console: Console, key: str) -> ClientConnection:
    """A browser's WebSocket, whose key is a subprotocol."""
    protocols = [Subprotocol("prospect"), Subprotocol(f"prospect.key.{key}")]
    return connect(f"{console.url.replace('http', 'ws')}/v1/stream", subprotocols=protocols, proxy=None)


def resume_in_a_browser(console: Console) -> None:
    """With a wrong key, and with a wrong handle; the right handle is one more secret."""
    with socket_of(console, f"{console.key}x") as socket:
        assert json.loads(socket.recv(READY_WITHIN_S))["code"] == "unauthorized"
    with socket_of(console, console.key) as socket:
        socket.send(json.dumps({"type": "session.update", "goal": "Make tea", "keep": True}))
        handle = json.loads(socket.recv(READY_WITHIN_S))["resume"]
    console.secrets.append(handle.rpartition(":")[2])
    with socket_of(console, console.key) as socket:
        for resume in (f"{handle}x", handle):
            socket.send(json.dumps({"type": "session.update", "resume": resume}))
        heard = [json.loads(socket.recv(READY_WITHIN_S))["type"] for _ in range(2)]
        assert heard == ["error", "session.created"]


def test_clients_come_and_go_and_then_the_server_without_a_stack_trace(console: Console, tmp_path: Path) -> None:
    """All that it starts listens on loopback alone, and no log of it holds a secret."""
    ours = family(console.process.pid)
    assert len(list(listeners(ours))) > 10
    assert not reachable(ours)
    logs = session_folder(ours)
    console.secrets.append((tmp_path / "serving.secret").read_text())
    make_mistakes(console)
    resume_in_a_browser(console)
    with ProspectClient(console.url, key=console.key) as client:
        for index in range(9):
            leave(client, closes=index % 3 == 0, speaks=index % 3 == 1)
        heard: list[ServerMessage | ServerError] = []
        with client.live("Make tea", STEPS, thresholds=ALWAYS, reconnect=False) as live:
            live.push(picture(0))
            ears = threading.Thread(target=listen, args=(live, heard))
            ears.start()
            while not any(getattr(message, "type", "") == "decision" for message in heard):
                time.sleep(0.1)
            seconds = console.press_ctrl_c()
            ears.join(READY_WITHIN_S)
    assert seconds < ENDS_WITHIN_S
    *_, last, lost = heard
    assert getattr(last, "type", "") == "session.going_away"
    assert isinstance(lost, ServerError)
    assert lost.code == "stream_lost"
    assert any(file.name.startswith("replica_default_Gateway") for file in logs.rglob("*")), "it has logs"
    assert not files_with([console.file, logs], console.secrets)
    for never in ("Traceback", "GeneratorExit", "will not be applied", "failed to shut down"):
        assert never not in console.printed
