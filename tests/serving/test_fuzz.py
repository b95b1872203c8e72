"""Whatever comes on a socket is answered: no defect, no hang, no session that is left open."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.websockets import WebSocketDisconnect

from prospect.model.checkpoint import LoadedModel
from prospect.protocol.messages import CLIENT_MESSAGES, UNAUTHORIZED, FrameAppend
from prospect.serving.access.access import Access
from prospect.serving.access.keyring import Keyring
from prospect.serving.access.keys import new_key
from prospect.serving.api import build_api
from prospect.serving.host import SessionHost
from prospect.serving.live_encoder import LiveEncoder
from prospect.serving.local import local_host
from prospect.serving.settings import ServingSettings
from prospect.serving.store import KeyTable
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from tests.serving.http_requests import local_client
from tests.serving.models import CONTEXT, NEVER, STEPS, picture
from tests.serving.test_socket import hear, hear_until, say

FRAMES = [FrameAppend(image=picture(seed)).model_dump(mode="json", exclude_none=True) for seed in range(3)]
NUMBERS = st.one_of(st.integers(-2, 12), st.sampled_from([2**53, 10**30, 0.1, 1e308, -0.0]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=20), st.sampled_from(["S1", "S9", "completed"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
FIELDS = sorted({name for message in CLIENT_MESSAGES for name in message.model_fields} - {"type"})
TYPES = [message.model_fields["type"].default for message in CLIENT_MESSAGES]

ANYTHING = st.builds(
    lambda kind, fields: json.dumps({"type": kind} | fields),
    st.sampled_from([*TYPES, "response.create", ""]),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4),
)
FRAME = st.builds(
    lambda frame, fields: json.dumps(frame | fields),
    st.sampled_from(FRAMES),
    st.dictionaries(st.sampled_from(["seq", "pts", "image"]), NUMBERS, max_size=2),
)
PATCH = st.builds(
    lambda step, label: json.dumps({"type": "state.patch", "state": {step: label}}),
    st.sampled_from(["S1", "S3", "S0", "S4", "S" + "9" * 5000, "S\u0663", ""]),
    st.sampled_from(["completed", "in_progress", "done"]),
)
TEXT = st.text(max_size=30).map(lambda text: json.dumps({"type": "input_text.append", "text": text}))
MESSAGES = st.lists(st.one_of(FRAME, FRAME, PATCH, TEXT, ANYTHING, st.text(max_size=30)), max_size=12)


@pytest.fixture(scope="module")
def host(loaded: LoadedModel, live_encoder: LiveEncoder) -> SessionHost:
    return local_host(StreamingEngine(loaded, CONTEXT, StreamingSettings(max_sessions=3)), live_encoder)


@pytest.fixture(scope="module")
def http(host: SessionHost) -> TestClient:
    with local_client(build_api(host)) as client:
        yield client
        client.portal.call(host.stop)


@pytest.fixture(scope="module")
def keyed(
    loaded: LoadedModel, live_encoder: LiveEncoder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TestClient, SessionHost, str]]:
    """A server that wants a key, its sessions, and the key."""
    table = KeyTable(f"sqlite:///{tmp_path_factory.mktemp('keys')}/keys.db")
    key, row = new_key("test")
    table.add(row)
    host = local_host(StreamingEngine(loaded, CONTEXT, StreamingSettings(max_sessions=3)), live_encoder)
    with local_client(build_api(host, Access(ServingSettings(), Keyring(table)))) as client:
        yield client, host, key
        client.portal.call(host.stop)


def is_close(text: str) -> bool:
    try:
        return json.loads(text).get("type") == "session.close"
    except (ValueError, AttributeError):
        return False


def fuzz(http: TestClient, host: SessionHost, messages: list[str], **headers: str) -> None:
    with http.websocket_connect("/v1/stream", headers=headers) as socket:
        say(socket, {"type": "session.update", "steps": STEPS, "thresholds": NEVER})
        assert hear(socket).type == "session.created"
        for text in filter(lambda text: not is_close(text), messages):
            socket.send_text(text)
        say(socket, {"type": "session.close"})
        heard = hear_until(socket, "session.closed")
    decided = [message.seq for message in heard if message.type == "decision"]
    assert decided == sorted(set(decided))
    assert heard[-1].frames == len(decided)
    assert not [message for message in heard if message.type == "error" and message.code == "internal"]
    assert not host.open_sessions


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=MESSAGES)
def test_any_messages_are_answered_and_the_session_ends_as_it_should(http: Any, host: Any, messages: list[str]) -> None:
    fuzz(http, host, messages)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=MESSAGES)
def test_with_a_key_the_same_and_without_one_nothing(keyed: Any, messages: list[str]) -> None:
    http, host, key = keyed
    fuzz(http, host, messages, authorization=f"Bearer {key}")
    for wrong in ({}, {"authorization": f"Bearer {key}x"}):
        with http.websocket_connect("/v1/stream", headers=wrong) as socket:
            for text in messages:
                socket.send_text(text)
            assert hear(socket).code == "unauthorized"
            with pytest.raises(WebSocketDisconnect) as left:
                socket.receive_text()
            assert left.value.code == UNAUTHORIZED
        assert not host.open_sessions


@pytest.mark.long
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=MESSAGES)
def test_the_same_for_a_long_time(http: Any, host: Any, messages: list[str]) -> None:
    fuzz(http, host, messages)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(opening=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4))
def test_any_opening_is_answered(http: Any, host: Any, opening: dict[str, Any]) -> None:
    opening.pop("keep", None)
    with http.websocket_connect("/v1/stream") as socket:
        say(socket, {"type": "session.update"} | opening)
        answer = hear(socket)
        if answer.type == "session.created":
            say(socket, {"type": "session.close"})
            assert hear(socket).type == "session.closed"
        else:
            assert answer.type == "error"
            assert answer.code not in ("internal", "busy")
