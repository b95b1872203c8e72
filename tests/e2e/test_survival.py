"""Real processes under Ray are killed while several sessions stream; each says what it says when nobody dies."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from ray import serve

from prospect.client import ProspectClient
from prospect.config.load import load
from prospect.hashing import derived_seed
from prospect.protocol.messages import DurableMessage, ServerMessage
from prospect.serving.config import ServeConfig
from prospect.serving.deployments import launch, store_url
from prospect.serving.store import SessionRow, Store
from scripts.cluster import free_port
from tests.serving.models import STEPS, VISION, picture, write_model

pytestmark = pytest.mark.e2e

NAMES = ("one", "two", "three")
NUM_FRAMES = 24
TEXTS = {2: "Shall I begin?", 9: "What now?", 17: "Done."}
AHEAD = 4
"""Frames that are sent before they are decided."""
BACK_WITHIN_S = 60


@dataclass
class Conversation:
    """What a client has heard of its session."""

    session_id: str
    messages: list[ServerMessage] = field(default_factory=list)

    @property
    def durable(self) -> list[tuple]:
        hidden = {"event", "session_id"}
        return [(m.event, m.model_dump(exclude=hidden)) for m in self.messages if isinstance(m, DurableMessage)]

    @property
    def decisions(self) -> list[tuple[int, int]]:
        return [(m.seq, m.frame) for m in self.messages if m.type == "decision"]

    @property
    def num_decided(self) -> int:
        """Frames that are decided, also those whose decisions were lost."""
        decided = [m.seq for m in self.messages if m.type == "decision"] + [m.decided_to for m in self.moves]
        return max(decided, default=-1) + 1

    @property
    def moves(self) -> list[ServerMessage]:
        return [m for m in self.messages if m.type == "session.moved"]


Listener = Callable[[Conversation], None]


class Server:
    """A served application whose processes can be killed."""

    def __init__(self, folder: Path, durability: str) -> None:
        port = free_port()
        settings = [
            f"storage.root={folder}",
            f"serving.model={folder / 'model'}",
            f"serving.port={port}",
            f"serving.durability={durability}",
            "serving.num_replicas=2",
            "serving.num_gateways=2",
            "streaming.deterministic=true",
            "streaming.deterministic_rows=4",
            "streaming.chunk_tokens=64",
            "streaming.cooldown_frames=3",
            "streaming.speak_hysteresis=null",
            "context.max_seq_len=288",
            "context.tail_seconds=1",
        ]
        config = load("serve", settings, ServeConfig)
        self.url = launch(config)
        self.store = Store(store_url(config))

    def row(self, session_id: str) -> SessionRow:
        row = self.store.find(session_id)
        assert row is not None
        return row

    def engine_of(self, session_id: str) -> int:
        """Process id of the engine that has a session."""
        return pid_at(self.row(session_id).engine)

    def gateway_of(self, session_id: str) -> int:
        return pid_at(self.row(session_id).owner)

    def wait_until_whole(self) -> None:
        """Until Serve has replaced what was killed, so that the next death finds a standby."""
        deadline = time.monotonic() + BACK_WITHIN_S
        wanted = {"Engine": 2, "Gateway": 2, "Encoder": 1}
        while True:
            deployments = serve.status().applications["prospect"].deployments
            running = {name: each.replica_states.get("RUNNING", 0) for name, each in deployments.items()}
            if running == wanted:
                time.sleep(1)  # gateways look for engines five times a second
                return
            assert time.monotonic() < deadline, running
            time.sleep(0.2)

    def stream(self, listener: Listener = lambda conversation: None) -> dict[str, Conversation]:
        """Stream all sessions at once to their ends; `listener` is told of each message of the first one."""
        with ThreadPoolExecutor() as pool, ProspectClient(self.url) as client:
            streamed = pool.map(lambda name: stream(client, name, listener if name == NAMES[0] else None), NAMES)
            return dict(zip(NAMES, streamed, strict=True))


def pid_at(address: str) -> int:
    port = int(address.rpartition(":")[2])
    [pid] = {each.pid for each in psutil.net_connections("tcp") if each.laddr.port == port and each.status == "LISTEN"}
    return pid


def stream(client: ProspectClient, name: str, listener: Listener | None) -> Conversation:
    """One session: two of three send embeddings, the third pictures."""
    with client.live("Make tea", STEPS, thresholds={"speak": 0.5, "update": 0.45}) as live:
        heard, sent = Conversation(live.session_id), 0

        def send() -> None:
            nonlocal sent
            while sent < NUM_FRAMES and sent < heard.num_decided + AHEAD:
                if text := TEXTS.get(sent):
                    live.text(text)
                live.push(frame(name, sent), pts=sent / 2)
                sent += 1

        send()
        for message in live:
            heard.messages.append(message)
            if message.type in ("decision", "session.moved"):
                send()
                if heard.num_decided == NUM_FRAMES:
                    live.close()
            if listener is not None:
                listener(heard)
    return heard


def frame(name: str, index: int) -> np.ndarray | bytes:
    if name == NAMES[2]:
        return picture(index)
    return np.random.default_rng(derived_seed(name, index)).standard_normal((1, DIM)).astype(np.float16)


DIM = 64


class Killer:
    """Kills processes once, when the first session has come to a moment."""

    def __init__(self, moment: Callable[[Conversation], bool], find: Callable[[str], list[int]]) -> None:
        self._moment, self._find = moment, find
        self.at = 0
        self.killed: list[int] = []

    def __call__(self, heard: Conversation) -> None:
        if not self.killed and self._moment(heard):
            self.killed = self._find(heard.session_id)
            self.at = len(heard.messages)
            assert len(heard.decisions) < NUM_FRAMES, "it had work"
            for pid in self.killed:
                os.kill(pid, signal.SIGKILL)


def in_mid_frame(heard: Conversation) -> bool:
    """Frames were sent and are not decided."""
    return len(heard.decisions) == 5


def in_mid_utterance(heard: Conversation) -> bool:
    return len(heard.decisions) >= 3 and heard.messages[-1].type == "response.delta"


def before_a_refresh(undisturbed: Conversation) -> Callable[[Conversation], bool]:
    """The moment when the last message before the second refresh has come, and the frame that brings it is there."""
    refreshed = [index for index, m in enumerate(undisturbed.messages) if m.type == "session.refreshed"]
    return lambda heard: len(heard.messages) == refreshed[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write_model(folder / "model")
    assert VISION.image_size == DIM
    return folder


@pytest.fixture(scope="module")
def server(local_ray: None, folder: Path) -> Iterator[Server]:
    server = Server(folder, "events")
    yield server
    server.store.close()
    serve.shutdown()


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> dict[str, Conversation]:
    spoken = server.stream()
    for heard in spoken.values():
        kinds = {message.type for message in heard.messages}
        assert {"state.updated", "response.delta", "response.done", "session.refreshed"} <= kinds
        assert not heard.moves
    return spoken


def same(spoken: dict[str, Conversation], undisturbed: dict[str, Conversation]) -> None:
    for name in NAMES:
        assert spoken[name].durable == undisturbed[name].durable
        assert spoken[name].decisions == undisturbed[name].decisions


@pytest.mark.parametrize("moment", [in_mid_frame, in_mid_utterance, before_a_refresh])
def test_an_engine_is_killed(server: Server, undisturbed: dict[str, Conversation], moment: Callable):
    server.wait_until_whole()
    when = moment(undisturbed[NAMES[0]]) if moment is before_a_refresh else moment
    killer = Killer(when, lambda session_id: [server.engine_of(session_id)])
    spoken = server.stream(killer)
    assert killer.killed
    same(spoken, undisturbed)
    [moved] = spoken[NAMES[0]].moves
    assert moved.lost_frames == 0
    assert 0 < moved.seconds < 20


def test_a_gateway_is_killed(server: Server, undisturbed: dict[str, Conversation]):
    server.wait_until_whole()
    killer = Killer(in_mid_utterance, lambda session_id: [server.gateway_of(session_id)])
    spoken = server.stream(killer)
    assert killer.killed
    same(spoken, undisturbed)


def test_both_are_killed(server: Server, undisturbed: dict[str, Conversation]):
    """State, conversation and position are there; what was seen since the last refresh is not, and that is said."""
    server.wait_until_whole()
    killer = Killer(in_mid_frame, lambda session_id: [server.engine_of(session_id), server.gateway_of(session_id)])
    spoken = server.stream(killer)
    assert killer.killed
    heard, expected = spoken[NAMES[0]], undisturbed[NAMES[0]]
    before = [m for m in heard.messages[: killer.at] if isinstance(m, DurableMessage)]
    assert heard.durable[: len(before)] == expected.durable[: len(before)]
    for each in spoken.values():
        assert [event for event, _ in each.durable] == list(range(1, len(each.durable) + 1)), "none lost, none twice"
        told = {seq for moved in each.moves for seq in range(moved.decided_to + 1)}
        assert {seq for seq, _ in each.decisions} | told == set(range(NUM_FRAMES))
        assert set(each.decisions) <= set(expected.decisions)
    assert heard.moves
    assert max(moved.lost_frames for moved in heard.moves) or heard.durable == expected.durable


def test_both_are_killed_and_the_frames_are_in_the_store(
    server: Server, folder: Path, undisturbed: dict[str, Conversation]
):
    serve.shutdown()
    durable = Server(folder, "frames")
    durable.wait_until_whole()
    killer = Killer(in_mid_frame, lambda session_id: [durable.engine_of(session_id), durable.gateway_of(session_id)])
    spoken = durable.stream(killer)
    durable.store.close()
    assert killer.killed
    same(spoken, undisturbed)
