"""Sessions of a served application whose processes are killed, for tests/e2e/test_survival*.py."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from ray import serve
from sqlalchemy import text

from prospect.client import ProspectClient
from prospect.config.load import load
from prospect.hashing import derived_seed
from prospect.protocol.messages import DurableMessage, ServerMessage
from prospect.serving.config import ServeConfig
from prospect.serving.deployments import launch, store_url
from prospect.serving.store import SessionRow, Store
from scripts.cluster import free_port
from tests.serving.models import STEPS, picture

NAMES = ("one", "two", "three")
NUM_FRAMES = 24
TEXTS = {2: "Shall I begin?", 9: "What now?", 17: "Done."}
DIM = 64
"""Of the features, as `tests.serving.models.VISION` gives them."""
AHEAD = 4
"""Frames that are sent before they are decided."""
BACK_WITHIN_S = 120


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

    def __init__(self, folder: Path, *settings: str) -> None:
        self._settings = [
            f"storage.root={folder}",
            f"serving.model={folder / 'model'}",
            f"serving.port={free_port()}",
            f"serving.direct_port={free_port()}",
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
        self.deploy(*settings)

    def deploy(self, *settings: str) -> None:
        """Start the application, or replace it by one of other settings."""
        self._settings += settings
        self._config = load("serve", self._settings, ServeConfig)
        self.url = launch(self._config)
        self.store = Store(store_url(self._config))
        self.direct_url = f"http://127.0.0.1:{self._config.serving.direct_port}"

    def stop(self) -> None:
        self.store.close()
        serve.shutdown()

    def row(self, session_id: str) -> SessionRow:
        row = self.store.find(session_id)
        assert row is not None
        return row

    def open_sessions(self) -> list[str]:
        """Ids of the sessions that any gateway owns."""
        with self.store._database.transaction() as connection:
            rows = connection.execute(text("SELECT session_id FROM prospect_sessions WHERE status = 'open'"))
            return [session_id for (session_id,) in rows]

    def engine_of(self, session_id: str) -> int:
        """Process id of the engine that has a session."""
        return pid_at(self.row(session_id).engine)

    def gateway_of(self, session_id: str) -> int:
        return pid_at(self.row(session_id).owner)

    def wait_until_whole(self) -> None:
        """Until Serve has replaced what was killed, so that the next death finds a standby."""
        deadline = time.monotonic() + BACK_WITHIN_S
        serving = self._config.serving
        wanted = {"Engine": serving.num_replicas, "Gateway": serving.num_gateways, "Encoder": serving.num_encoders}
        while True:
            deployments = serve.status().applications["prospect"].deployments
            running = {name: each.replica_states.get("RUNNING", 0) for name, each in deployments.items()}
            if running == wanted:
                time.sleep(1)  # gateways look for engines five times a second
                return
            assert time.monotonic() < deadline, running
            time.sleep(0.2)

    def stream(
        self,
        listener: Listener = lambda conversation: None,
        heard_by: Sequence[str] = NAMES[:1],
        url: str | None = None,
    ) -> dict[str, Conversation]:
        """Stream all sessions at once to their ends; `listener` gets each message of the sessions in `heard_by`."""
        with ThreadPoolExecutor() as pool, ProspectClient(url or self.url) as client:
            streamed = pool.map(lambda name: stream(client, name, listener if name in heard_by else None), NAMES)
            return dict(zip(NAMES, streamed, strict=True))


def is_up(address: str) -> bool:
    """Whether anybody listens there."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except OSError:
        return False


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


class Pause:
    """Holds all sessions once they have so many decisions, until something is done."""

    def __init__(self, decisions: int, work: Callable[[], object], within: float = 300) -> None:
        self._decisions, self._held = decisions, set[str]()
        self._work, self._failed = work, ""
        self._all = threading.Barrier(len(NAMES), action=self._do, timeout=within)

    def __call__(self, heard: Conversation) -> None:
        if len(heard.decisions) == self._decisions and heard.session_id not in self._held:
            self._held.add(heard.session_id)
            try:
                self._all.wait()
            except threading.BrokenBarrierError:
                raise AssertionError(self._failed or "not every session came to the moment") from None

    def _do(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._failed = f"the work failed: {error!r}"  # which other threads see before its own
            raise


def in_mid_frame(heard: Conversation) -> bool:
    """Frames were sent and are not decided."""
    return len(heard.decisions) == 5


def in_mid_utterance(heard: Conversation) -> bool:
    return len(heard.decisions) >= 3 and heard.messages[-1].type == "response.delta"


def before_a_refresh(undisturbed: Conversation) -> Callable[[Conversation], bool]:
    """The moment when the last message before the second refresh has come, and the frame that brings it is there."""
    refreshed = [index for index, m in enumerate(undisturbed.messages) if m.type == "session.refreshed"]
    return lambda heard: len(heard.messages) == refreshed[1]


def same(spoken: dict[str, Conversation], undisturbed: dict[str, Conversation]) -> None:
    """Assert that nothing was lost, repeated or changed."""
    for name in NAMES:
        assert spoken[name].durable == undisturbed[name].durable
        assert spoken[name].decisions == undisturbed[name].decisions


def same_but_for_farewells(spoken: dict[str, Conversation], undisturbed: dict[str, Conversation]) -> None:
    """Assert the same where gateways have stopped and said so."""
    for name in NAMES:
        heard = spoken[name].durable
        assert [event for event, _ in heard] == list(range(1, len(heard) + 1))
        words = [said for _, said in heard if said["type"] != "session.going_away"]
        assert words == [said for _, said in undisturbed[name].durable]
        assert spoken[name].decisions == undisturbed[name].decisions
