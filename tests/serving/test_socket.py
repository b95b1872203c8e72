"""The WebSocket: live streams on a real engine, mistakes that leave the stream open, clients that vanish."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from starlette.testclient import WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from prospect.protocol.messages import FrameAppend, ServerMessage, StatePatch, TextAppend
from prospect.protocol.parsing import parse_server
from prospect.serving import websocket
from prospect.serving.settings import SessionLimits
from prospect.streaming.settings import StreamingSettings
from tests.serving.http_requests import numbers
from tests.serving.models import ALWAYS, NEVER, STEPS, picture

TEA = {"type": "session.update", "goal": "Make tea", "steps": STEPS}


def say(socket: WebSocketTestSession, message: dict) -> None:
    socket.send_text(json.dumps(message))


def hear(socket: WebSocketTestSession) -> ServerMessage:
    return parse_server(socket.receive_text())


def hear_until(socket: WebSocketTestSession, kind: str) -> list[ServerMessage]:
    heard = [hear(socket)]
    while heard[-1].type != kind:
        heard.append(hear(socket))
    return heard


def push(socket: WebSocketTestSession, seq: int, **fields: object) -> None:
    socket.send_text(FrameAppend(seq=seq, image=picture(seq), **fields).model_dump_json(exclude_none=True))


@contextmanager
def opened(http, **fields: object) -> Iterator[tuple[WebSocketTestSession, ServerMessage]]:
    with http.websocket_connect("/v1/stream") as socket:
        say(socket, TEA | fields)
        yield socket, hear(socket)


def test_a_stream_from_first_to_last(http):
    with opened(http, thresholds=NEVER) as (socket, created):
        assert (created.type, created.fps, created.next_seq) == ("session.created", 2, 0)
        assert created.thresholds.model_dump() == NEVER
        say(socket, {"type": "input_text.append", "text": "Hello."})
        for seq in range(5):
            push(socket, seq, pts=seq / 2)
        say(socket, {"type": "session.close"})
        *decisions, closed = hear_until(socket, "session.closed")
        assert [(d.type, d.seq, d.frame) for d in decisions] == [("decision", i, i) for i in range(5)]
        assert (closed.reason, closed.frames) == ("client", 5)
        with pytest.raises(WebSocketDisconnect) as left:
            socket.receive_text()
        assert left.value.code == 1000


def test_the_pieces_of_an_utterance_add_up_to_it(http):
    with opened(http, thresholds=ALWAYS) as (socket, _):
        push(socket, 0)
        heard = hear_until(socket, "response.done")
        pieces = [message for message in heard if message.type == "response.delta"]
        assert "".join(piece.text for piece in pieces).strip() == heard[-1].text
        assert {(piece.seq, piece.frame) for piece in pieces} == {(0, 0)}
        kinds = [message.type for message in heard]
        assert kinds.index("decision") > kinds.index("response.delta")
        assert kinds.count("decision") == 1


def test_a_patch_is_answered_and_rebuilds_the_context(http, host):
    with opened(http, thresholds=NEVER) as (socket, _):
        say(socket, {"type": "state.patch", "state": {"S1": "completed"}})
        assert hear(socket).state == {"S1": "completed", "S2": "not_started", "S3": "not_started"}
        push(socket, 0)
        assert [message.type for message in hear_until(socket, "decision")] == ["session.refreshed", "decision"]
    assert numbers(host.readings)["prospect_refreshes_total"] == 1


def test_mistakes_leave_the_stream_open(http):
    with http.websocket_connect("/v1/stream") as socket:
        push(socket, 0)
        assert "before session.update" in hear(socket).message
        socket.send_text("{")
        assert "is not JSON" in hear(socket).message
        socket.send_bytes(b"\x00\xff")
        assert hear(socket).code == "invalid_message"
        say(socket, TEA | {"thresholds": NEVER})
        assert hear(socket).type == "session.created"
        say(socket, TEA)
        assert "open another one" in hear(socket).message
        say(socket, {"type": "input_frame.append", "seq": 0})
        assert "either image or embedding" in hear(socket).message
        push(socket, 0)
        assert hear(socket).type == "decision"


@pytest.mark.parametrize("message", [FrameAppend(seq=1, image=b"x"), TextAppend(text="x"), StatePatch(state={})])
def test_a_defect_at_a_message_is_answered_and_the_stream_goes_on(http, host, monkeypatch, message):
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    with opened(http, thresholds=NEVER) as (socket, _):
        push(socket, 0)
        assert hear(socket).type == "decision"
        with monkeypatch.context() as patch:
            for method in ("push", "text", "patch"):
                patch.setattr(host, method, broken)
            socket.send_text(message.model_dump_json(exclude_none=True))
            answer = hear(socket)
            assert (answer.type, answer.code, answer.seq) == ("error", "internal", getattr(message, "seq", None))
        push(socket, 1)
        assert hear(socket).seq == 1


def test_a_stream_may_have_its_sessions_address(http):
    with http.websocket_connect("/v1/sessions/kitchen-7/stream") as socket:
        say(socket, TEA | {"session_id": "kitchen-8"})
        assert hear(socket).field == "session_id"
        say(socket, TEA | {"thresholds": NEVER})
        created = hear(socket)
        assert created.session_id == "kitchen-7"
        with http.websocket_connect("/v1/sessions/kitchen-8/stream") as other:
            say(other, {"type": "session.update", "resume": created.resume})
            assert hear(other).field == "resume"
    with http.websocket_connect("/v1/sessions/a b/stream") as socket:
        say(socket, TEA)
        assert hear(socket).field == "session_id"


def test_a_refused_frame_may_be_left_out_or_sent_again(http):
    with opened(http, thresholds=NEVER) as (socket, _):
        broken = FrameAppend(seq=0, image=b"no picture").model_dump_json(exclude_none=True)
        socket.send_text(broken)
        error = hear(socket)
        assert (error.code, error.field, error.seq) == ("invalid_data", "image", 0)
        push(socket, 0)
        assert hear(socket).seq == 0
        socket.send_text(broken.replace('"seq":0', '"seq":1'))
        assert hear(socket).seq == 1
        push(socket, 2)
        decision = hear(socket)
        assert (decision.type, decision.seq, decision.frame) == ("decision", 2, 1)


def test_a_repeated_frame_is_answered_and_not_decided_again(http):
    with opened(http, thresholds=NEVER) as (socket, created):
        push(socket, 0)
        assert hear(socket).type == "decision"
        push(socket, 0)
        assert hear(socket).code == "duplicate_frame"
        push(socket, 7)
        assert hear(socket).code == "sequence_gap"
        push(socket, 1)
        assert hear(socket).seq == 1
        assert http.get(f"/v1/sessions/{created.session_id}").json()["counters"]["frames"] == 2


def test_every_frame_too_many_is_said_to_be_dropped(http, host):
    """Each frame speaks, so decisions are slower than the frames that come; every seq gets one answer, in order."""
    with opened(http, thresholds=ALWAYS) as (socket, _):
        for seq in range(40):
            push(socket, seq)
        say(socket, {"type": "session.close"})
        heard = hear_until(socket, "session.closed")
    decided = [message.seq for message in heard if message.type == "decision"]
    dropped = [message.seq for message in heard if message.type == "frame.dropped"]
    assert dropped
    assert numbers(host.readings)["prospect_frames_dropped_total"] == len(dropped)
    assert sorted(decided + dropped) == list(range(40))
    assert decided == sorted(decided)


def test_sessions_do_not_hear_each_other(http):
    with opened(http, thresholds=NEVER) as (one, a), opened(http, thresholds=NEVER) as (other, b):
        assert a.session_id != b.session_id
        for seq in range(3):
            push(one, seq)
        push(other, 0)
        assert [hear(one).seq for _ in range(3)] == [0, 1, 2]
        assert hear(other).seq == 0


def test_a_client_that_vanishes_ends_its_session(http, host):
    with opened(http) as (_, created):
        assert host.open_sessions == [created.session_id]
    while host.open_sessions:
        http.get("/healthz")


def test_a_kept_session_is_resumed_with_what_was_missed(http, host):
    with opened(http, keep=True, thresholds=NEVER) as (socket, created):
        push(socket, 0)
        hear(socket)
    http.post(f"/v1/sessions/{created.session_id}/frames", content=picture(1), headers={"content-type": "image/png"})
    with http.websocket_connect("/v1/stream") as socket:
        say(socket, {"type": "session.update", "resume": created.resume})
        again = hear(socket)
        assert (again.session_id, again.next_seq) == (created.session_id, 2)
        assert hear(socket).seq == 1
        push(socket, 2)
        assert hear(socket).seq == 2
        with http.websocket_connect("/v1/stream") as thief:
            say(thief, {"type": "session.update", "resume": created.resume})
            assert hear(thief).code == "unknown_session", "the newer stream has spoken"
    assert numbers(host.readings)["prospect_sessions_resumed_total"] == 1


def test_a_handle_is_good_until_the_newer_stream_has_spoken(http):
    """The answer to a resumption may be lost on its way."""
    with opened(http, keep=True, thresholds=NEVER) as (socket, created):
        push(socket, 0)
        hear(socket)
    for _ in range(3):
        with http.websocket_connect("/v1/stream") as socket:
            say(socket, {"type": "session.update", "resume": created.resume, "decided": -1})
            assert (hear(socket).next_seq, hear(socket).seq) == (1, 0)


def test_what_a_client_lacks_is_sent_again(http):
    with opened(http, keep=True, thresholds=ALWAYS) as (socket, created):
        assert "resume_from_event" in created.capabilities
        for seq in range(3):
            push(socket, seq)
        first = [hear(socket) for _ in range(3)]
        while first[-1].type != "response.done" or first[-1].seq < 2:
            first.append(hear(socket))
    events = [message.event for message in first if message.type != "decision"]
    assert events == list(range(1, len(events) + 1))
    middle = events[len(events) // 2]
    with http.websocket_connect("/v1/stream") as socket:
        say(socket, {"type": "session.update", "resume": created.resume, "last_event": middle, "decided": 1})
        assert hear(socket).last_event == events[-1]
        expected = [m for m in first if (m.seq == 2 if m.type == "decision" else m.event > middle)]
        assert [hear(socket) for _ in expected] == expected
        say(socket, {"type": "event.ack", "event": events[-1]})
        say(socket, {"type": "session.close"})
        assert hear(socket).type == "session.closed"


def test_what_delete_erased_cannot_be_resumed(http):
    with opened(http, keep=True) as (_, created):
        pass
    assert http.delete(f"/v1/sessions/{created.session_id}").status_code == 200
    with http.websocket_connect("/v1/stream") as socket:
        say(socket, {"type": "session.update", "resume": created.resume})
        assert hear(socket).code == "unknown_session"


def test_resuming_ends_the_older_stream_and_its_farewell_does_not_close_the_session(http, host):
    with opened(http, thresholds=NEVER) as (old, created), http.websocket_connect("/v1/stream") as new:
        say(new, {"type": "session.update", "resume": created.resume})
        assert hear(new).session_id == created.session_id
        with pytest.raises(WebSocketDisconnect) as left:
            old.receive_text()
        assert left.value.code == 4001
        old.close()
        push(new, 0)
        assert hear(new).seq == 0


def test_one_place_too_few_is_said_before_the_stream_is_closed(http):
    for _ in range(3):
        http.post("/v1/sessions", json={})
    with http.websocket_connect("/v1/stream") as socket:
        say(socket, TEA)
        assert hear(socket).code == "busy"
        with pytest.raises(WebSocketDisconnect) as left:
            socket.receive_text()
        assert left.value.code == 1013


def test_a_stopping_server_says_so(http, host):
    with opened(http) as (socket, _):
        http.portal.call(host.stop)
        farewell = hear(socket)
        assert (farewell.type, farewell.reason) == ("session.going_away", "the server stops")


def test_an_engine_that_fails_is_reported_to_everybody_and_to_serve(http, worker, monkeypatch):
    """There is no other engine for its session within `serving.move_seconds`."""

    def broken() -> None:
        raise RuntimeError("out of memory")

    with opened(http, thresholds=NEVER) as (socket, _):
        push(socket, 0)
        hear(socket)
        monkeypatch.setattr(worker._engine, "step", broken)
        push(socket, 1)
        last = hear(socket)
        assert (last.code, last.event) == ("session_failed", 1)
        assert "no engine took the session within 0.5 seconds" in last.message
    with pytest.raises(RuntimeError, match="out of memory"):
        worker.check_health()
    assert http.get("/healthz").status_code == 503


def test_a_stream_that_opens_no_session_is_closed(http, monkeypatch):
    monkeypatch.setattr(websocket, "OPENED_WITHIN_S", 0.5)
    with http.websocket_connect("/v1/stream") as socket:
        socket.send_text("{")
        assert "is not JSON" in hear(socket).message
        assert hear(socket).code == "silent_client"
        with pytest.raises(WebSocketDisconnect) as left:
            socket.receive_text()
        assert left.value.code == 1001
    monkeypatch.setattr(websocket, "OPENED_WITHIN_S", 1.0)
    with opened(http) as (socket, _):
        time.sleep(1.1)
        push(socket, 0)
        assert hear_until(socket, "decision")


class TestParking:
    @pytest.fixture
    def host_settings(self) -> SessionLimits:
        return SessionLimits(park_after_s=0.1)

    @pytest.fixture
    def streaming_settings(self) -> StreamingSettings:
        return StreamingSettings(parking="memory")

    def test_an_idle_session_is_parked_and_goes_on(self, http, worker):
        with opened(http, thresholds=NEVER) as (socket, _):
            push(socket, 0)
            hear(socket)
            while not worker._engine.stats().parked:
                time.sleep(0.01)
            push(socket, 1)
            assert hear(socket).frame == 1


class TestSlowClient:
    @pytest.fixture
    def host_settings(self) -> SessionLimits:
        return SessionLimits(max_unread_messages=2)

    def test_events_that_nobody_reads_are_lost_and_it_is_said(self, http):
        with opened(http, keep=True, thresholds=ALWAYS) as (_, created):
            pass
        path = f"/v1/sessions/{created.session_id}/frames"
        for seq in range(3):
            http.post(path, content=picture(seq), headers={"content-type": "image/png"})
        with http.websocket_connect("/v1/stream") as socket:
            say(socket, {"type": "session.update", "resume": created.resume, "last_event": 0, "decided": 2})
            last = hear(socket).last_event
            lost, *kept = [hear(socket) for _ in range(3)]
            assert lost.code == "events_lost"
            assert f"events 1 to {last - 2} are kept no more" in lost.message
            assert [message.event for message in kept] == [last - 1, last]
