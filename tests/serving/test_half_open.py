"""A client whose machine is gone without a farewell: its connection stays open, and answers no ping."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.sync.client import connect
from websockets.uri import parse_uri

from prospect.protocol.messages import FrameAppend
from prospect.protocol.parsing import parse_server
from prospect.serving.host import SessionHost
from tests.serving.clients import WITHIN_S, Server
from tests.serving.models import NEVER, STEPS, picture

PING_S = 1.5
"""Serve's proxy pings each 20 seconds, and waits as long."""


@pytest.fixture
def server(host: SessionHost) -> Iterator[Server]:
    made = Server(host, ws_ping_interval=PING_S, ws_ping_timeout=PING_S)
    yield made
    made.stop()


class Unplugged:
    """The client's side of a WebSocket up to the moment at which nothing of it is sent any more, pongs neither."""

    def __init__(self, link: socket.socket, port: int) -> None:
        self._link = link
        self._protocol = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}/v1/stream"))
        self._protocol.send_request(self._protocol.connect())
        self._flush()
        while self._protocol.state is State.CONNECTING:
            self._read()

    def say(self, message: str) -> None:
        self._protocol.send_text(message.encode())
        self._flush()

    def hear(self) -> str:
        """The next text; nothing that the protocol wants to send in between is sent."""
        while True:
            for event in self._protocol.events_received():
                if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                    return bytes(event.data).decode()
            self._read()

    def hear_end(self) -> None:
        """Read until the server closes the connection."""
        while self._link.recv(65536):
            pass

    def _read(self) -> None:
        received = self._link.recv(65536)
        assert received, "the server has closed"
        self._protocol.receive_data(received)

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            self._link.sendall(data)


@contextmanager
def unplugged(server: Server) -> Iterator[Unplugged]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=WITHIN_S) as link:
        yield Unplugged(link, server.port)


def test_its_session_waits_for_it_and_goes_on(server: Server, host: SessionHost) -> None:
    with unplugged(server) as client:
        client.say(json.dumps({"type": "session.update", "goal": "Make tea", "steps": STEPS, "thresholds": NEVER}))
        created = parse_server(client.hear())
        client.say(FrameAppend(seq=0, image=picture(0)).model_dump_json(exclude_none=True))
        assert parse_server(client.hear()).type == "decision"
        client.hear_end()
    with connect(f"ws://127.0.0.1:{server.port}/v1/stream", proxy=None) as again:
        again.send(json.dumps({"type": "session.update", "resume": created.resume}))
        resumed = parse_server(again.recv(WITHIN_S))
        assert (resumed.type, resumed.session_id, resumed.next_seq) == ("session.created", created.session_id, 1)


def test_one_that_never_spoke_is_cut_off_too(server: Server, host: SessionHost) -> None:
    with unplugged(server) as client:
        client.hear_end()
    assert not host.open_sessions
