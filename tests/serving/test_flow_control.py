"""Clients that do not read, behind a queue without a bound such as Serve's: what waits for them, and for how long."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from prospect.client import ProspectClient
from prospect.serving import proxy
from prospect.serving.api import build_api
from prospect.serving.flow_control import AHEAD_BYTES
from prospect.serving.host import SessionHost
from prospect.serving.proxy import RECEIPT_BYTES, Receipts, size_of
from tests.serving.clients import WITHIN_S, until
from tests.serving.models import NEVER, STEPS
from tests.serving.uvicorn_server import listening

SMALL = 2**15
"""Bytes of a kernel's buffer, which would take megabytes."""
NONSENSE = json.dumps({"type": "nonsense"})
"""A message whose answer is longer than itself."""


class Hoard:
    """Between application and server: takes every message at once, and passes them on one by one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.most = 0
        """Bytes that have waited here at once."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        waiting: asyncio.Queue[Message] = asyncio.Queue()
        there = 0

        async def take(message: Message) -> None:
            nonlocal there
            there += size_of(message)
            self.most = max(self.most, there)
            waiting.put_nowait(message)

        async def pass_on() -> None:
            nonlocal there
            while True:
                message = await waiting.get()
                await send(message)
                there -= size_of(message)
                waiting.task_done()

        passing = asyncio.create_task(pass_on())
        try:
            await self._app(scope, receive, take)
            await waiting.join()
        finally:
            passing.cancel()


@pytest.fixture
def hoard(host: SessionHost) -> Hoard:
    return Hoard(build_api(host))


@pytest.fixture
def url(hoard: Hoard, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(proxy, "TAKEN_WITHIN_S", 4.0)  # long enough for a busy machine to fill the window
    with listening(Receipts(hoard), send_buffer=SMALL) as url:
        yield url


def connection(url: str) -> socket.socket:
    """Of a client whose kernel takes little, too."""
    link = socket.socket()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    link.connect(("127.0.0.1", urlsplit(url).port))
    return link


def stream(url: str, link: socket.socket) -> ClientConnection:
    """A WebSocket whose library reads no more than a message ahead."""
    where = url.replace("http", "ws") + "/v1/stream"
    return connect(where, sock=link, proxy=None, compression=None, max_queue=1, close_timeout=0.1)


def flood(url: str, host: SessionHost) -> None:
    """Send without reading until the session is gone."""
    with connection(url) as link, stream(url, link) as client:
        client.send(json.dumps({"type": "session.update", "goal": "Make tea", "steps": STEPS, "thresholds": NEVER}))
        until(lambda: host.open_sessions)
        sending = threading.Thread(target=send_nonsense, args=(client,))
        sending.start()
        try:
            until(lambda: not host.open_sessions)
        finally:
            link.shutdown(socket.SHUT_RDWR)  # the server reads no more either, so that the client waits in its kernel
            sending.join()


def send_nonsense(client: ClientConnection) -> None:
    with suppress(OSError, ConnectionClosed):
        while True:
            client.send(NONSENSE)


def test_a_client_that_never_reads_fills_its_window_and_is_cut_off(url: str, hoard: Hoard, host: SessionHost) -> None:
    flood(url, host)
    assert AHEAD_BYTES - RECEIPT_BYTES < hoard.most < AHEAD_BYTES + 1000, "the last receipt was due for up to as much"


def test_it_is_cut_off_too_where_nothing_lies_between(host: SessionHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a gateway's own port; the server's own ping would not be missed for 40 seconds."""
    monkeypatch.setattr(proxy, "TAKEN_WITHIN_S", 1.0)
    with listening(Receipts(build_api(host), sends=False), send_buffer=SMALL) as url:
        began = time.monotonic()
        flood(url, host)
        assert time.monotonic() - began < WITHIN_S


def test_one_that_reads_gets_everything(url: str, hoard: Hoard) -> None:
    number = 6000
    with ProspectClient(url) as client, client.live("Make tea", STEPS, thresholds=NEVER) as live:
        sent = 0
        for heard in range(number):
            while sent < min(number, heard + 100):
                live._socket.send(NONSENSE)
                sent += 1
            assert live.receive(WITHIN_S).field == "type"
        live.close()
        assert [message.type for message in live] == ["session.closed"]
    assert hoard.most < AHEAD_BYTES


def test_requests_and_listeners_pass(url: str) -> None:
    with ProspectClient(url) as client:
        session_id = client.create("tea " * 100, thresholds=NEVER).session_id
        with httpx.stream("GET", f"{url}/v1/sessions/{session_id}/events", trust_env=False) as answer:
            client.close(session_id)
            said = [json.loads(line[6:])["type"] for line in answer.iter_lines() if line.startswith("data: ")]
        assert said == ["session.closed"]
