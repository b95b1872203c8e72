"""What an operator sees of a deployment: status, numbers and log lines of real sessions."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prospect.errors import SessionError
from prospect.model.checkpoint import LoadedModel
from prospect.monitoring import METRICS
from prospect.protocol.messages import ServerStatus, SessionMoved
from prospect.serving import writer
from prospect.serving.host import SessionHost
from prospect.serving.logs import JsonLines
from prospect.serving.worker import EngineWorker
from tests.serving.deaths import SECRET, Site, talk
from tests.serving.http_requests import frame, numbers, open_session
from tests.serving.models import ALWAYS, STEPS


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the package writes as JSON."""
    written, logger = io.StringIO(), logging.getLogger("prospect")
    handler, level = logging.StreamHandler(written), logger.level
    handler.setFormatter(JsonLines("gateway"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield written
    logger.removeHandler(handler)
    logger.setLevel(level)


def events(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def test_the_status_of_a_deployment(http, host: SessionHost):
    before = ServerStatus(**http.get("/v1/status").json())
    assert (before.health, before.ready, before.engines, before.gateways, before.encoders) == ("ok", True, 1, 1, 1)
    assert (before.sessions, before.capacity, before.store, before.last_move) == (0, 3, "none", None)
    assert before.step_seconds.p95 == 0
    sessions = [open_session(http, thresholds=ALWAYS) for _ in range(3)]
    http.post(f"/v1/sessions/{sessions[0]}/frames", json={"frames": [frame(0), frame(1)]})
    after = ServerStatus(**http.get("/v1/status").json())
    assert (after.health, after.ready, after.sessions) == ("ok", False, 3)
    assert after.reason == "all sessions of all engines are taken; try again later"
    assert after.decisions_per_second == 0.2
    assert 0 < after.step_seconds.p50 <= after.step_seconds.p95
    assert after.model is not None
    assert after.model.name == "tests"


def test_the_numbers_of_a_session(http, host: SessionHost, worker: EngineWorker):
    path = f"/v1/sessions/{open_session(http, steps=STEPS, thresholds=ALWAYS)}"
    http.post(f"{path}/frames", json={"frames": [frame(0), frame(1)]})
    assert http.post(f"{path}/frames", json=frame(0, seq=0)).status_code == 409
    http.portal.call(host.measure)
    http.portal.call(worker.measure)
    http.delete(path)
    gateway, engine = numbers(host.readings), numbers(worker.readings)
    assert gateway["prospect_sessions_opened_total"] == gateway["prospect_sessions"] == 1
    assert gateway["prospect_sessions_ended_total client"] == 1
    assert gateway["prospect_frames_total picture"] == 2
    assert gateway["prospect_refused_total duplicate_frame"] == 1
    assert sum(value for name, value in gateway.items() if name.startswith("prospect_decisions_total")) == 2
    assert gateway["prospect_engines"] == 1
    assert gateway["prospect_frames_waiting"] == gateway["prospect_store_away"] == 0
    assert gateway["prospect_decision_seconds"] > 0
    assert engine["prospect_engine_frames_total"] == 2
    assert engine["prospect_engine_sessions resident"] == 1
    assert engine["prospect_engine_tokens_total"] > 0
    assert engine["prospect_kv_pages used"] > 0
    assert engine["prospect_step_seconds"] > 0
    for name in (*gateway, *engine):
        assert name.split()[0] in METRICS


def test_a_log_line_names_what_happened_and_holds_no_texts(http, lines: io.StringIO):
    secret = "My secret is 4711."
    session_id = open_session(http, goal=secret, steps=STEPS, thresholds=ALWAYS)
    path = f"/v1/sessions/{session_id}"
    http.post(f"{path}/text", json={"text": secret})
    outcome = http.post(f"{path}/frames", json=frame(0)).json()["frames"][0]
    http.post(f"{path}/frames", json={"embedding": secret})
    http.delete(path)
    told = {each["event"]: each for each in events(lines)}
    assert {"session.opened", "frame.acted", "message.refused", "session.ended"} <= set(told)
    acted = told["frame.acted"]
    assert (acted["session"], acted["frame"], acted["level"], acted["process"]) == (session_id, 0, "info", "gateway")
    assert acted["epoch"] == told["session.opened"]["epoch"]
    assert acted["time"].endswith("+00:00")
    assert told["session.ended"]["reason"] == "client"
    written = lines.getvalue()
    assert "4711" not in written
    assert outcome["utterance"] not in written.replace(session_id, "")
    assert "resume" not in written


def test_an_exception_is_written_without_its_message(lines: io.StringIO):
    log = logging.getLogger("prospect.serving.tests")
    try:
        raise ValueError("the picture of Mrs Smith")
    except ValueError:
        log.exception("a message of session %s", "kitchen-7")
    [line] = events(lines)
    assert (line["event"], line["level"], line["error"]) == ("serving.tests", "error", "ValueError")
    assert line["message"] == "a message of session %s"
    assert line["stack"][0].startswith("test_overview.py:")
    assert "Smith" not in lines.getvalue()


def test_gateways_know_of_each_other_and_of_moves(loaded: LoadedModel, tmp_path: Path, lines: io.StringIO):
    """An engine passes on what each gateway says; a session whose engine dies is a move."""

    async def story() -> ServerStatus:
        site = Site(loaded, f"sqlite:///{tmp_path}/sessions.db", "events", None)
        other = SessionHost(site.directory, SECRET, None, site.settings)
        try:
            await talk(site, loaded, {10: ["engine dies"]})
            await (await site.gateway.overview()).status()  # tells the engines
            return await (await other.overview()).status()
        finally:
            await other.stop()
            await site.stop()

    status = asyncio.run(story())
    assert (status.gateways, status.engines, status.store, status.moves) == (2, 1, "ok", 1)
    assert status.last_move is not None
    assert status.last_move.seconds_ago < 60
    assert status.last_move.lost_frames == 0
    [moved] = [each for each in events(lines) if each["event"] == "session.moved"]
    assert (moved["session"], moved["seconds"]) == ("a", status.last_move.seconds)
    [opened] = [each for each in events(lines) if each["event"] == "session.opened"]
    assert moved["epoch"] == opened["epoch"] + 1


def test_what_two_deaths_cost_is_counted(loaded: LoadedModel, tmp_path: Path):
    """Engine and gateway at once, without the frames in the store."""

    async def story() -> tuple[list[SessionMoved], dict[str, float]]:
        site = Site(loaded, f"sqlite:///{tmp_path}/sessions.db", "events", None)
        try:
            heard = await talk(site, loaded, {10: ["gateway dies", "engine dies"]})
            return [each for each in heard.messages if isinstance(each, SessionMoved)], numbers(site.gateway.readings)
        finally:
            await site.stop()

    [*_, moved], counted = asyncio.run(story())
    assert moved.lost_frames > 0
    assert counted["prospect_frames_lost_total"] == moved.lost_frames
    assert counted["prospect_move_seconds"] == moved.seconds
    assert counted["prospect_sessions_resumed_total"] == 1
    assert counted["prospect_refreshes_total"] >= 1, "the context is built anew from the state"


def test_a_gateway_without_sessions_notices_that_the_store_is_away(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writer, "LAZY_S", 0.02)
    monkeypatch.setattr(writer, "PROBED_EVERY_S", 0.1)

    async def story() -> None:
        file = tmp_path / "sessions.db"
        site = Site(loaded, f"sqlite:///{file}", "events", None)
        overview = await site.gateway.overview()

        async def until(health: str) -> None:
            async with asyncio.timeout(10):
                while await overview.health() != health:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

        await until("ok")
        await overview.ready()
        file.rename(tmp_path / "elsewhere")
        await until("degraded")
        with pytest.raises(SessionError, match="the session store is away"):
            await overview.ready()
        (tmp_path / "elsewhere").rename(file)
        await until("ok")
        assert site.store.find("") is None, "nothing is left of the questions"
        await site.stop()

    asyncio.run(story())
