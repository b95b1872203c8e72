"""Clients of two gateways that push, drop their connections and come back, and check what they are told."""

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx
import numpy as np
import uvicorn
from hypothesis import strategies as st
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
from prospect.serving.access.access import Access
from prospect.serving.api import build_api
from prospect.serving.host import SessionHost
from prospect.serving.store import Store
from prospect.streaming.engine import StreamingEngine
from scripts.cluster import free_port
from tests.serving.models import picture

WITHIN_S = 30.0
MOST = 3
"""Sessions at once."""
KEPT = 12
"""Decisions that the server keeps for a client that comes back."""
REFUSED = {"invalid_data", "wrong_shape", "fingerprint_mismatch"}
"""Codes for a frame that is none."""
MISPLACED = {"duplicate_frame", "sequence_gap"}

GATEWAY = st.integers(0, 1)
NO_FRAMES = ("broken", "shape", "stranger")
KINDS = st.lists(st.sampled_from(["embedding", "embedding", "picture", *NO_FRAMES]), min_size=1)
LABELS = st.sampled_from(["not_started", "in_progress", "completed"])


def until(holds: Callable[[], object], within: float = WITHIN_S) -> None:
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Server:
    """A gateway with an event loop of its own; `options` are of uvicorn."""

    def __init__(self, host: SessionHost, access: Access | None = None, **options: Any) -> None:
        self.host, self.port = host, free_port()
        defaults = {"host": "127.0.0.1", "port": self.port, "log_level": "error", "lifespan": "off"}
        config = uvicorn.Config(build_api(host, access), **defaults, **options)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        until(lambda: self._server.started)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve()
        await self.host.stop()

    def stop_host(self) -> None:
        """End the streams, as a gateway does before its process ends."""
        asyncio.run_coroutine_threadsafe(self.host.stop(), self._loop).result(WITHIN_S)

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
        for seq, (kind, message) in sorted(self.unanswered.items()):
            if seq >= created.next_seq:
                self.send_frame(kind, message)
            elif kind in NO_FRAMES:
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
            case ErrorMessage(seq=seq, code=code) if code in MISPLACED:
                if seq in self.unanswered and self.unanswered[seq][0] in NO_FRAMES:  # refused on the last connection
                    self.forgotten.add(seq)
                    del self.unanswered[seq]
            case ErrorMessage():
                assert message.code not in ("internal", "session_failed", "events_lost"), message
        return message

    def _answer(self, seq: int, answer: str) -> None:
        assert seq not in self.answered, f"frame {seq}: {self.answered[seq]} and {answer}"
        self.answered[seq] = answer
        kind, _ = self.unanswered.pop(seq)
        assert (answer == "error") == (kind in NO_FRAMES), (seq, kind, answer)

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
