"""A state machine plays clients that push, drop their connections and come back, at two gateways and beside HTTP calls.

Whatever it does, each frame is answered once, durable messages are numbered without gaps over all connections, and no
session is left.
"""

import asyncio
import functools
import json
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, multiple, run_state_machine_as_test
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from prospect.model.checkpoint import LoadedModel
from prospect.protocol.messages import (
    DurableMessage,
    EmbeddingMessage,
    ErrorMessage,
    FrameAppend,
    FrameDecision,
    FrameDropped,
    ServerMessage,
    SessionCreated,
)
from prospect.protocol.parsing import parse_server
from prospect.serving.api import build_api
from prospect.serving.host import SessionHost
from prospect.serving.live_encoder import LiveEncoder, encoder_of
from prospect.serving.local import LocalEngines
from prospect.serving.settings import ServingSettings, SessionLimits
from prospect.serving.store import SessionRow, Store
from prospect.serving.worker import EngineWorker
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from scripts.cluster import free_port
from tests.serving.models import ALWAYS, CONTEXT, NEVER, STEPS, picture

WITHIN_S = 30.0
MOST = 3
"""Sessions at once."""
KEPT = 12
"""Decisions that the server keeps for a client that comes back."""
REFUSED = {"invalid_data", "wrong_shape", "fingerprint_mismatch"}
"""Codes for a frame that is none."""
MISPLACED = {"duplicate_frame", "sequence_gap"}

GATEWAY = st.integers(0, 1)
KINDS = st.lists(st.sampled_from(["embedding", "embedding", "picture", "broken", "shape", "stranger"]), min_size=1)
LABELS = st.sampled_from(["not_started", "in_progress", "completed"])


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def noted(step: Callable[..., Any]) -> Any:
    """Keep a step's failure: where a second run of the same steps succeeds, hypothesis tells of that."""

    @functools.wraps(step)
    def told(self: "Clients", **arguments: Any) -> Any:
        try:
            return step(self, **arguments)
        except Exception:
            self.site.failures.append("\n".join([traceback.format_exc(), *self.site.state(), *self.logs()]))
            raise

    return told


def rule(**drawn: Any) -> Callable[[Callable[..., Any]], Any]:
    """A rule of hypothesis."""
    return lambda step: stateful.rule(**drawn)(noted(step))


class Server:
    """A gateway with an event loop of its own."""

    def __init__(self, host: SessionHost) -> None:
        self.host, self.port = host, free_port()
        config = uvicorn.Config(build_api(host), host="127.0.0.1", port=self.port, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        until(lambda: self._server.started)

    async def _run(self) -> None:
        await self._server.serve()
        await self.host.stop()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join()


@dataclass
class Site:
    """What a machine plays with."""

    loaded: LoadedModel
    engine: StreamingEngine
    gateways: list[Server]
    store: Store
    http: httpx.Client
    failures: list[str] = field(default_factory=list)

    def frame(self, kind: str, seq: int) -> FrameAppend:
        """A frame, or what is none."""
        if kind in ("picture", "broken"):
            return FrameAppend(seq=seq, image=picture(seq % 4) if kind == "picture" else b"no picture")
        width = self.loaded.model.config.vision_dim
        rows = np.random.default_rng(seq).standard_normal((1, width if kind != "shape" else width - 1))
        by = "0123456789abcdef" if kind == "stranger" else self.loaded.fingerprint
        return FrameAppend(seq=seq, embedding=EmbeddingMessage.of(rows.astype(np.float16), by))

    def state(self) -> list[str]:
        """Which sessions are where."""
        return [f"engine {self.engine.session_ids}", *(str(each.host.open_sessions) for each in self.gateways)]

    def until_stored(self, created: SessionCreated, holds: Callable[[SessionRow], object]) -> None:
        """Wait until the other gateway can know."""

        def is_stored() -> object:
            row = self.store.find(created.session_id)
            return row is not None and holds(row)

        until(is_stored)

    def call(self, method: str, gateway: int, path: str, **body: Any) -> httpx.Response:
        """A request, which no defect answers."""
        answer = self.http.request(method, f"http://127.0.0.1:{self.gateways[gateway].port}/v1/sessions{path}", **body)
        assert answer.status_code < 500, answer.text
        return answer


@dataclass
class Client:
    """One session's client, which keeps its frames until they are answered."""

    site: Site
    socket: ClientConnection | None = None
    created: SessionCreated = field(init=False)
    next_seq: int = 0
    last_event: int = 0
    decided: int = -1
    unanswered: dict[int, tuple[str, FrameAppend]] = field(default_factory=dict)
    """Kind and message, by seq."""
    answered: dict[int, str] = field(default_factory=dict)
    forgotten: set[int] = field(default_factory=set)
    """Refused frames, the answers to which went down with a connection."""
    marks: Iterator[int] = field(default_factory=count)
    log: list[str] = field(default_factory=list)
    """What was sent and heard, shortened."""

    @property
    def path(self) -> str:
        return f"/{self.created.session_id}"

    # Connections --------------------------------------------------------------------------------------------

    def connect(self, gateway: int, **opening: Any) -> None:
        """Open the session, or continue it, and send again what the server has not taken."""
        port = self.site.gateways[gateway].port
        self.socket = connect(f"ws://127.0.0.1:{port}/v1/stream", proxy=None, max_queue=None, legacy=True)
        self.log.append(f"gateway {gateway}")
        self.say(type="session.update", **opening)
        created = self.receive()
        assert isinstance(created, SessionCreated), created
        self.created = created
        self.site.until_stored(created, lambda row: created.resume.partition(":")[2] in row.tokens)
        for seq, (kind, message) in sorted(self.unanswered.items()):
            if seq >= created.next_seq:
                self.send_frame(kind, message)
            elif kind in ("broken", "shape", "stranger"):
                self.forgotten.add(seq)
                del self.unanswered[seq]

    def be_connected(self, gateway: int = 0) -> None:
        if self.socket is None:
            self.connect(gateway, resume=self.created.resume, last_event=self.last_event, decided=self.decided)

    def drop(self, abruptly: bool) -> None:
        """Lose the connection and whatever is under way on it."""
        assert self.socket is not None
        self.log.append("dropped")
        if abruptly:
            self.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.socket.socket.close()
        else:
            self.socket.close()
        self.socket = None

    def say(self, **message: Any) -> None:
        assert self.socket is not None
        self.log.append(f"> {message}"[:200])
        self.socket.send(json.dumps(message))

    def send_frame(self, kind: str, message: FrameAppend) -> None:
        assert self.socket is not None
        self.log.append(f"> frame {message.seq} ({kind})")
        self.socket.send(message.model_dump_json(exclude_none=True))

    def push(self, kinds: list[str]) -> None:
        for kind in kinds:
            message = self.site.frame(kind, self.next_seq)
            self.unanswered[self.next_seq] = kind, message
            self.next_seq += 1
            self.send_frame(kind, message)

    def receive(self) -> ServerMessage:
        assert self.socket is not None
        message = parse_server(self.socket.recv(WITHIN_S))
        self.log.append(f"< {message!r}"[:200])
        return message

    # What is heard ------------------------------------------------------------------------------------------

    def hear(self) -> ServerMessage:
        """The next message, noted and checked."""
        message = self.receive()
        if isinstance(message, DurableMessage) and message.event is not None:
            assert message.event == self.last_event + 1, message
            self.last_event = message.event
        match message:
            case FrameDecision():
                assert message.seq > self.decided
                self.decided = message.seq
                self._answer(message.seq, "decision")
            case FrameDropped():
                self._answer(message.seq, "drop")
            case ErrorMessage(seq=int(seq), code=code) if code not in MISPLACED:
                assert code in REFUSED, message
                self._answer(seq, "error")
            case ErrorMessage():
                assert message.code not in ("internal", "session_failed", "events_lost"), message
        return message

    def _answer(self, seq: int, answer: str) -> None:
        assert seq not in self.answered, f"frame {seq}: {self.answered[seq]} and {answer}"
        self.answered[seq] = answer
        kind, _ = self.unanswered.pop(seq)
        assert (answer == "error") == (kind in ("broken", "shape", "stranger")), (seq, kind, answer)

    def catch_up(self) -> None:
        """Hear what has come up to now: the server answers messages in order."""
        mark = f"mark-{next(self.marks)}"
        self.say(type=mark)
        while mark not in getattr(self.hear(), "message", ""):
            pass

    def settle(self) -> None:
        """Hear until each frame is answered."""
        while self.unanswered:
            self.hear()

    def finish(self) -> None:
        """Hear the rest, and that the session is closed."""
        while self.hear().type != "session.closed":
            pass
        assert self.socket is not None
        with suppress(ConnectionClosed):
            self.socket.recv(WITHIN_S)
            raise AssertionError("something came after the end")
        self.socket.close()
        assert set(self.answered) | self.forgotten == set(range(self.next_seq))
        assert not set(self.answered) & self.forgotten


class Clients(RuleBasedStateMachine):
    """Up to three clients at once."""

    site: Site
    sessions: Bundle[Client] = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[Client] = []

    def logs(self) -> list[str]:
        """What the open sessions' clients have sent and heard."""
        return [line for client in self.open for line in ("", *client.log)]

    # Streams ------------------------------------------------------------------------------------------------

    @rule(target=sessions, speaks=st.booleans(), gateway=GATEWAY)
    def open_session(self, speaks: bool, gateway: int) -> Any:
        if len(self.open) == MOST:
            return multiple()
        client = Client(self.site)
        client.connect(gateway, goal="Make tea", steps=STEPS, thresholds=ALWAYS if speaks else NEVER, keep=True)
        self.open.append(client)
        return client

    @rule(client=sessions, kinds=KINDS)
    def push(self, client: Client, kinds: list[str]) -> None:
        client.be_connected()
        client.push(kinds)

    @rule(client=sessions, ahead=st.booleans())
    def push_out_of_order(self, client: Client, ahead: bool) -> None:
        client.be_connected()
        client.push(["embedding"])  # behind it, the server knows what comes next
        client.settle()
        client.send_frame("misplaced", self.site.frame("embedding", client.next_seq + (3 if ahead else -1)))
        while getattr(client.hear(), "code", "") not in MISPLACED:
            pass

    @rule(client=sessions, text=st.text(min_size=1, max_size=20))
    def say_text(self, client: Client, text: str) -> None:
        client.be_connected()
        client.say(type="input_text.append", text=text)

    @rule(client=sessions, step=st.sampled_from(["S1", "S3", "S4"]), label=LABELS)
    def patch(self, client: Client, step: str, label: str) -> None:
        client.be_connected()
        client.say(type="state.patch", state={step: label})

    @rule(client=sessions)
    def acknowledge(self, client: Client) -> None:
        client.be_connected()
        client.say(type="event.ack", event=client.last_event)

    @rule(client=sessions, whole=st.booleans())
    def listen(self, client: Client, whole: bool) -> None:
        client.be_connected()
        client.settle() if whole else client.catch_up()

    @rule(client=sessions, abruptly=st.booleans())
    def drop_connection(self, client: Client, abruptly: bool) -> None:
        if client.socket is not None:
            if len(client.unanswered) > KEPT:
                client.settle()
            client.drop(abruptly)

    @rule(client=sessions, gateway=GATEWAY)
    def resume(self, client: Client, gateway: int) -> None:
        client.be_connected(gateway)

    @rule(client=sessions, gateway=GATEWAY)
    def resume_on_a_second_connection(self, client: Client, gateway: int) -> None:
        """The first one may not have noticed that it is dead."""
        if client.socket is not None and len(client.unanswered) <= KEPT:
            first, client.socket = client.socket, None
            client.be_connected(gateway)
            first.close()

    @rule(gateway=GATEWAY, kinds=KINDS, abruptly=st.booleans())
    def come_and_go(self, gateway: int, kinds: list[str], abruptly: bool) -> None:
        """A session that is not to be kept ends with its connection."""
        client = Client(self.site)
        client.connect(gateway, steps=STEPS)
        for kind in kinds:
            client.send_frame(kind, self.site.frame(kind, 0))
        client.drop(abruptly)
        self.site.until_stored(client.created, lambda row: row.status == "closed")
        assert self.site.call("GET", gateway, client.path).status_code == 404

    # HTTP ---------------------------------------------------------------------------------------------------

    @rule(client=sessions, gateway=GATEWAY, what=st.sampled_from(["", "/transcript", "/record"]))
    def look(self, client: Client, gateway: int, what: str) -> None:
        answer = self.site.call("GET", gateway, client.path + what)
        assert answer.status_code == 200 or (what == "/record" and answer.status_code == 409), answer.text

    @rule(client=sessions, gateway=GATEWAY, label=LABELS)
    def patch_over_http(self, client: Client, gateway: int, label: str) -> None:
        answer = self.site.call("PATCH", gateway, f"{client.path}/state", json={"state": {"S2": label}})
        assert answer.json()["state"]["S2"] == label

    @rule(client=sessions, gateway=GATEWAY, text=st.text(min_size=1, max_size=20))
    def text_over_http(self, client: Client, gateway: int, text: str) -> None:
        assert self.site.call("POST", gateway, f"{client.path}/text", json={"text": text}).status_code in (202, 422)

    @rule(client=sessions, gateway=GATEWAY)
    def frame_over_http(self, client: Client, gateway: int) -> None:
        """The stream hears its decision too."""
        client.be_connected()
        client.settle()
        seq, client.next_seq = client.next_seq, client.next_seq + 1
        message = self.site.frame("embedding", seq)
        client.unanswered[seq] = "embedding", message
        body = message.model_dump(mode="json", exclude_none=True)
        [outcome] = self.site.call("POST", gateway, f"{client.path}/frames", json=body).json()["frames"]
        assert outcome["seq"] == seq

    # The end ------------------------------------------------------------------------------------------------

    @rule(client=consumes(sessions), over_http=st.booleans(), gateway=GATEWAY)
    def close(self, client: Client, over_http: bool, gateway: int) -> None:
        client.be_connected(gateway)
        if over_http:
            client.catch_up()  # what was sent has been taken
            assert self.site.call("DELETE", gateway, client.path).json()["reason"] == "client"
        else:
            client.say(type="session.close")
        client.finish()
        self.open.remove(client)
        for each in range(2):
            assert self.site.call("GET", each, client.path).status_code == 404

    def teardown(self) -> None:
        try:
            self.end()
        finally:  # the next example begins anew
            for gateway in self.site.gateways:
                for session_id in gateway.host.open_sessions:
                    self.site.call("DELETE", 0, f"/{session_id}")
            until(lambda: not self.site.engine.session_ids)

    @noted
    def end(self) -> None:
        """Close what is open; then nothing is left."""
        for client in self.open:
            client.be_connected()
            client.say(type="session.close")
            client.finish()
        for gateway in self.site.gateways:
            assert not gateway.host.open_sessions
        until(lambda: not self.site.engine.session_ids)


@pytest.fixture(scope="module")
def site(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder: Path = tmp_path_factory.mktemp("machine")
    streaming = StreamingSettings(
        cooldown_frames=0, speak_hysteresis=None, max_sessions=2 * MOST, max_waiting_frames=KEPT
    )
    engine = StreamingEngine(loaded, CONTEXT, streaming)
    engines = LocalEngines([EngineWorker(engine, accepts_images=True)], "secret")
    limits = ServingSettings(limits=SessionLimits(max_waiting_frames=KEPT))
    encoder = encoder_of(loaded)
    assert encoder is not None
    url = f"sqlite:///{folder}/sessions.db"
    hosts = [SessionHost(engines, "secret", LiveEncoder(encoder), limits, Store(url)) for _ in range(2)]
    gateways = [Server(host) for host in hosts]
    with httpx.Client(trust_env=False, timeout=WITHIN_S) as http:
        for gateway in gateways:  # the engine begins to listen with the first
            assert http.get(f"http://127.0.0.1:{gateway.port}/readyz").status_code == 200
        yield Site(loaded, engine, gateways, Store(url), http)
    for gateway in reversed(gateways):
        gateway.stop()


def play(site: Site, examples: int, steps: int) -> None:
    machine = type("Machine", (Clients,), {"site": site})
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    limits = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks)
    try:
        run_state_machine_as_test(machine, settings=limits)
    except Exception:
        pytest.fail("\n\n".join([*site.failures[:1], traceback.format_exc()]))


def test_whatever_clients_do_each_frame_is_answered_once(site: Site) -> None:
    play(site, 25, 25)


@pytest.mark.long
def test_the_same_for_a_long_time(site: Site) -> None:
    play(site, 400, 50)
