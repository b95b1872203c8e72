"""Further deaths, and planned changes, of a served application while sessions stream."""

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from prospect.client import ProspectClient
from tests.e2e.sessions import (
    NAMES,
    NUM_FRAMES,
    Conversation,
    Killer,
    Pause,
    Server,
    in_mid_frame,
    is_up,
    same,
    same_but_for_farewells,
    stream,
)
from tests.needs import skip_without
from tests.serving.clients import until
from tests.serving.models import write_model

pytestmark = [pytest.mark.e2e, pytest.mark.long]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write_model(folder / "model")
    shutil.copytree(folder / "model", folder / "next")
    return folder


@pytest.fixture(scope="module")
def server(local_ray: None, folder: Path) -> Iterator[Server]:
    server = Server(folder)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> dict[str, Conversation]:
    return server.stream()


def actor(name: str) -> list[int]:
    """Process ids of Ray's actors of a class."""
    return [each.pid for each in psutil.process_iter(["name", "cmdline"]) if f"ray::{name}" in " ".join(each.cmdline())]


class Once:
    """Does something in a thread when the first session has come to a frame."""

    def __init__(self, frame: int, work: Callable[[], None]) -> None:
        self._frame, self._work = frame, work
        self.thread: threading.Thread | None = None

    def __call__(self, heard: Conversation) -> None:
        if self.thread is None and len(heard.decisions) == self._frame:
            self.thread = threading.Thread(target=self._work)
            self.thread.start()


@pytest.mark.parametrize("seed", range(20))
def test_any_death_at_any_moment(server: Server, undisturbed: dict[str, Conversation], seed: int):
    server.wait_until_whole()
    draw = random.Random(seed)
    at = draw.randrange(1, len(undisturbed[NAMES[0]].messages) - AFTER)
    find = draw.choice([server.engine_of, server.gateway_of])
    killer = Killer(lambda heard: len(heard.messages) >= at, lambda session_id: [find(session_id)])
    spoken = server.stream(killer)
    assert killer.killed
    same(spoken, undisturbed)


AFTER = 6
"""Messages that must be left when a process is killed, so that it has work."""


@pytest.mark.parametrize("kind", ["ProxyActor", "ServeController"])
def test_serves_own_processes_are_killed(server: Server, undisturbed: dict[str, Conversation], kind: str):
    server.wait_until_whole()
    killer = Killer(in_mid_frame, lambda session_id: actor(kind))
    spoken = server.stream(killer)
    assert killer.killed
    same(spoken, undisturbed)


@pytest.mark.parametrize("seconds", [4, 25])
def test_an_engine_sleeps(server: Server, undisturbed: dict[str, Conversation], seconds: int):
    """For less, or for more, than the time after which its gateway takes it for dead."""
    server.wait_until_whole()

    def sleep() -> None:
        pid = server.engine_of(next(iter(server.open_sessions())))
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)

    once = Once(5, sleep)
    spoken = server.stream(once)
    once.thread.join()
    same(spoken, undisturbed)


def test_a_gateway_sleeps_and_another_one_takes_its_session(server: Server, undisturbed: dict[str, Conversation]):
    """Somebody asks for the session over HTTP meanwhile; when the sleeper wakes, its client goes to the new owner."""
    server.wait_until_whole()

    def sleep() -> None:
        session_id = next(iter(server.open_sessions()))
        pid, row = server.gateway_of(session_id), server.row(session_id)
        os.kill(pid, signal.SIGSTOP)
        try:
            deadline = time.monotonic() + 25
            while server.row(session_id).owner == row.owner and time.monotonic() < deadline:
                try:
                    httpx.get(f"{server.url}/v1/sessions/{session_id}", timeout=15)
                except httpx.HTTPError:
                    continue
        finally:
            os.kill(pid, signal.SIGCONT)
        assert server.row(session_id).epoch > row.epoch

    once = Once(5, sleep)
    spoken = server.stream(once)
    once.thread.join()
    same(spoken, undisturbed)


@pytest.mark.parametrize("engines", [1, 2])
def test_engines_come_and_go(server: Server, undisturbed: dict[str, Conversation], engines: int):
    replace_all(server, undisturbed, f"serving.num_replicas={engines}")


def replace_all(server: Server, undisturbed: dict[str, Conversation], setting: str, url: str | None = None) -> None:
    """Deploy with another setting, for which every engine and gateway is replaced, while all sessions are under way."""
    before: set[str] = set()

    def change() -> None:
        rows = [server.row(session_id) for session_id in server.open_sessions()]
        before.update(address for row in rows for address in (row.owner, row.engine))
        server.deploy(setting)
        until(lambda: not any(map(is_up, before)), 120)

    server.wait_until_whole()
    spoken = server.stream(Pause(3, change), heard_by=NAMES, url=url)
    for heard in spoken.values():
        assert heard.moves
        assert any(message.type == "session.going_away" for message in heard.messages)
        assert not any(moved.lost_frames for moved in heard.moves)
    same_but_for_farewells(spoken, undisturbed)


@pytest.mark.parametrize("version", ["next", "model"])
def test_a_new_version_of_the_model_takes_over(
    server: Server, folder: Path, undisturbed: dict[str, Conversation], version: str
):
    """Its weights are the same. Clients come by Serve's proxy, then by the gateways' own port."""
    url = server.url if version == "next" else server.direct_url
    replace_all(server, undisturbed, f"serving.model={folder / version}", url)
    with ProspectClient(server.url) as client:
        assert client.model().version == str(folder / version)


def test_requests_and_streams_meet_at_two_gateways(server: Server):
    """Whichever gateway takes a request, the session's owner answers it."""
    server.wait_until_whole()
    curl = skip_without("curl", shutil.which("curl")) or "curl"
    with ProspectClient(server.url) as client:
        streams = {name: threading.Thread(target=stream, args=(client, name, None)) for name in NAMES}
        for thread in streams.values():
            thread.start()
        answers = []
        while any(thread.is_alive() for thread in streams.values()):
            for session_id in server.open_sessions():
                url = f"{server.url}/v1/sessions/{session_id}"
                done = subprocess.run([curl, "-s", "--noproxy", "*", url], capture_output=True, text=True, timeout=30)
                answers.append(json.loads(done.stdout))
        views = [answer for answer in answers if "session_id" in answer]
        assert len(views) > 10
        assert max(view["next_seq"] for view in views) <= NUM_FRAMES
        errors = {answer["error"]["code"] for answer in answers if "error" in answer}
        assert errors <= {"unknown_session"}, "it was closed meanwhile"
