"""schemathesis on the HTTP interface: what the description allows and what it forbids is answered as it says."""

import logging
import re
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import from_schema
from schemathesis.engine.events import NonFatalError, ScenarioFinished
from starlette.types import ASGIApp, Receive, Scope, Send

from prospect.protocol.messages import SessionUpdate
from prospect.serving.access.access import OPEN_PATHS, Access
from prospect.serving.access.keyring import Keyring
from prospect.serving.access.keys import new_key
from prospect.serving.api import build_api
from prospect.serving.host import SessionHost
from prospect.serving.local import LocalEngines
from prospect.serving.session_ids import scoped
from prospect.serving.settings import ServingSettings, SessionLimits
from prospect.serving.store import KeyTable, Store
from prospect.serving.worker import EngineWorker
from prospect.streaming.settings import StreamingSettings
from tests.serving.models import STEPS
from tests.serving.uvicorn_server import listening

OPEN = "open"
"""A session that is there whenever a request comes."""
EXPECTED = {200, 201, 202, 404, 405, 415, 422}
"""Statuses that a run must have met, or it has not looked far."""
IDLE_S = 1.0


class HalfAtOne:
    """Sends half of the requests about sessions that never were to one that is there."""

    _PATH = re.compile(r"/v1/sessions/([^/]+)((?!/events$).*)")
    """All but its stream of events, which would end with it."""

    def __init__(self, app: ASGIApp, host: SessionHost, key_id: str | None = None) -> None:
        self._app, self._host, self._key_id = app, host, key_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = self._PATH.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if named and not re.fullmatch(r"[0-9a-f]{32}", named[1]) and zlib.crc32(named[1].encode()) % 2:
            if scoped(self._key_id, OPEN) not in self._host.open_sessions:
                await self._host.create(SessionUpdate(session_id=OPEN, steps=STEPS), False, self._key_id)
            scope = {**scope, "path": f"/v1/sessions/{OPEN}{named[2]}"}
        await self._app(scope, receive, send)


@pytest.fixture
def streaming_settings() -> StreamingSettings:
    return StreamingSettings(max_sessions=16)


@pytest.fixture
def host(worker: EngineWorker, live_encoder: Any, tmp_path: Any) -> SessionHost:
    settings = ServingSettings(limits=SessionLimits(idle_timeout_s=IDLE_S))
    store = Store(f"sqlite:///{tmp_path}/sessions.db")
    return SessionHost(LocalEngines([worker], "secret"), "secret", live_encoder, settings, store)


@pytest.fixture
def url(host: SessionHost, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a real server in this process: schemathesis would start an app of this kind anew for each request."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with listening(HalfAtOne(build_api(host), host)) as url:
        yield url


def explore(
    url: str, max_examples: int, stateful: bool = False, key: str = "", sent: bool = True
) -> Counter[tuple[str, int]]:
    """Send requests of all kinds; returns how often each path was answered with which status.

    Args:
        url: of the server.
        max_examples: requests of a kind.
        stateful: whether to send sequences of them too.
        key: with which the description is asked for; then without all the requests that a schema alone can name.
        sent: whether the requests have the key.

    Everything that schemathesis checks has to hold, but that each request which its schema allows is accepted: a
    schema does not know whether bytes are a picture, and what fits the session as it is.
    """
    bearer = {"Authorization": f"Bearer {key}"} if key else {}
    config = SchemathesisConfig.from_dict(
        {
            "seed": 1,
            "headers": bearer if sent else {},
            "continue-on-failure": True,
            "generation": {"max-examples": max_examples, "deterministic": True},
            "checks": {"positive_data_acceptance": {"enabled": False}},
            "phases": {"stateful": {"enabled": stateful}, "coverage": {"enabled": not key}},
        }
    )
    met: Counter[tuple[str, int]] = Counter()
    wrong = []
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", config=config, headers=bearer)
    for event in from_schema(schema).execute():
        if isinstance(event, NonFatalError):
            wrong.append(f"{event.label}: {event.value}")
        elif isinstance(event, ScenarioFinished):
            for interaction in event.recorder.interactions.values():
                assert interaction.response is not None
                met[urlsplit(interaction.request.uri).path, interaction.response.status_code] += 1
            found = [each for checks in event.recorder.checks.values() for each in checks if each.failure_info]
            wrong += [f"{event.recorder.label}: {each.failure_info.failure}" for each in found if each.failure_info]
    assert not wrong, "\n\n".join(wrong)
    return met


def check(url: str, host: SessionHost, caplog: pytest.LogCaptureFixture, max_examples: int, stateful: bool) -> None:
    met = explore(url, max_examples, stateful)
    assert met.total() > 500
    assert {status for _, status in met} >= EXPECTED
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    deadline = time.monotonic() + 20 * IDLE_S
    while host.open_sessions:
        assert time.monotonic() < deadline, "sessions that nobody uses are left"
        time.sleep(0.1)


def test_every_operation_answers_as_described(url: str, host: SessionHost, caplog: pytest.LogCaptureFixture) -> None:
    check(url, host, caplog, 10, stateful=False)


@pytest.fixture
def keyed(host: SessionHost, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """Of a server that wants a key, and the key."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    table = KeyTable(f"sqlite:///{tmp_path}/sessions.db")
    key, row = new_key("test")
    table.add(row)
    access = Access(ServingSettings(), Keyring(table))
    with listening(HalfAtOne(build_api(host, access), host, row.key_id)) as url:
        yield url, key


def test_with_a_key_the_same_and_without_one_nothing(keyed: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """Requests from which schemathesis leaves out the key are refused."""
    url, key = keyed
    met = explore(url, 4, key=key)
    assert {status for _, status in met} >= {200, 201, 401, 404, 422}
    assert met.total() > 50
    met = explore(url, 2, key=key, sent=False)
    assert {path for path, status in met if status != 401} == OPEN_PATHS - {"/"}, "the page is not described"
    assert met.total() > 20
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.long
def test_the_same_with_many_requests(url: str, host: SessionHost, caplog: pytest.LogCaptureFixture) -> None:
    check(url, host, caplog, 800, stateful=True)
