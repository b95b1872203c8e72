"""Server-sent events: who only watches hears what the session's client hears, through whichever gateway."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from prospect.client import ProspectClient
from prospect.protocol.messages import ResponseDone, SessionGoingAway
from prospect.serving import event_stream, watching
from prospect.serving.host import SessionHost
from prospect.serving.live_encoder import LiveEncoder
from prospect.serving.local import LocalEngines
from prospect.serving.store import Store
from prospect.serving.watching import Watcher
from prospect.serving.worker import EngineWorker
from tests.serving.clients import Server, until
from tests.serving.models import ALWAYS, STEPS, picture

NUM_FRAMES = 4


@pytest.fixture
def gateways(worker: EngineWorker, live_encoder: LiveEncoder, tmp_path) -> Iterator[list[Server]]:
    """Two of one store."""
    engines, store = LocalEngines([worker], "secret"), Store(f"sqlite:///{tmp_path}/sessions.db")
    servers = [Server(SessionHost(engines, "secret", live_encoder, store=store)) for _ in range(2)]
    yield servers
    for server in servers:
        server.stop()


def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}"


@contextmanager
def watching_at(server: Server, session_id: str, **headers: str) -> Iterator[Iterator[str]]:
    """The lines of a stream of events."""
    path = f"{url(server)}/v1/sessions/{session_id}/events"
    with httpx.stream("GET", path, headers=headers, timeout=30) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield answer.iter_lines()


def events(lines: Iterator[str], last: str = "session.closed") -> Iterator[tuple[int | None, dict]]:
    """(id, message) of each event up to one of a type."""
    number = None
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "id":
            number = int(value)
        elif field == "data":
            message = json.loads(value)
            yield number, message
            number = None
            if message["type"] == last:
                return


@pytest.mark.parametrize("through", [0, 1], ids=["its gateway", "another gateway"])
def test_a_listener_hears_what_the_client_hears(gateways: list[Server], through: int):
    with (
        ProspectClient(url(gateways[0])) as client,
        client.live("Make tea", STEPS, thresholds=ALWAYS) as live,
        watching_at(gateways[through], live.session_id) as lines,
    ):
        for index in range(NUM_FRAMES):
            live.push(picture(index))
        live.close()
        heard = list(events(lines))
        said = [message.model_dump(mode="json", exclude_none=True) for message in live]
    assert [message for _, message in heard] == said
    assert [number for number, _ in heard] == [message.get("event") for message in said]
    assert {"decision", "state.updated", "response.delta", "response.done", "session.closed"} <= {
        message["type"] for message in said
    }


@pytest.mark.parametrize("through", [0, 1], ids=["its gateway", "another gateway"])
def test_a_listener_that_comes_back_hears_what_it_lacks(gateways: list[Server], through: int):
    with ProspectClient(url(gateways[0])) as client, client.live("Make tea", STEPS, thresholds=ALWAYS) as live:
        for index in range(NUM_FRAMES):
            live.push(picture(index))
        while live.receive(30).type != "response.done":
            pass
        with watching_at(gateways[through], live.session_id) as lines:
            first = next(number for number, _ in events(lines) if number)
        with watching_at(gateways[through], live.session_id, **{"Last-Event-ID": str(first)}) as lines:
            live.close()
            again = list(events(lines))
    numbers = [number for number, _ in again if number]
    assert numbers == list(range(first + 1, first + 1 + len(numbers)))
    decided = [message["seq"] for _, message in again if message["type"] == "decision"]
    assert decided == list(range(NUM_FRAMES))


def test_who_has_heard_the_end_is_told_to_stop(gateways: list[Server]):
    with ProspectClient(url(gateways[0])) as client, client.live() as live:
        live.close()
        [closed] = list(live)
    path = f"{url(gateways[0])}/v1/sessions/{live.session_id}/events"
    assert httpx.get(path, headers={"Last-Event-ID": str(closed.event)}).status_code == 204
    assert [message["type"] for _, message in events(iter(httpx.get(path).text.splitlines()))] == ["session.closed"]


def test_mistakes_are_answered(gateways: list[Server]):
    answer = httpx.get(f"{url(gateways[0])}/v1/sessions/none/events")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_session")
    answer = httpx.get(f"{url(gateways[0])}/v1/sessions/none/events", headers={"Last-Event-ID": "x"})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "last-event-id")


def test_a_gateway_that_stops_says_so_without_the_handle_and_lets_its_listeners_go(gateways: list[Server]):
    """One at the session's gateway, one at another gateway that stops."""
    with ProspectClient(url(gateways[0])) as client:
        session_id = client.create().session_id
        with watching_at(gateways[1], session_id) as there, watching_at(gateways[0], session_id) as here:
            next(there)
            gateways[1].stop_host()
            assert list(there) == [""]
            gateways[0].stop_host()
            [(number, message)] = list(events(here, "session.going_away"))
    assert number is not None
    assert set(message) == {"type", "event", "reason"}


def test_a_silent_stream_is_kept_alive(gateways: list[Server], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(event_stream, "ALIVE_EVERY_S", 0.05)
    with ProspectClient(url(gateways[0])) as client:
        session_id = client.create().session_id
        with watching_at(gateways[0], session_id) as lines:
            assert [next(lines) for _ in range(5)] == ["retry: 1000", "", ":", "", ":"]


def test_a_listener_who_leaves_is_forgotten(gateways: list[Server]):
    with ProspectClient(url(gateways[0])) as client:
        session_id = client.create().session_id
        with watching_at(gateways[0], session_id) as one, watching_at(gateways[1], session_id) as other:
            next(one), next(other)
            journal = gateways[0].host.find(session_id).journal
            assert len(journal._watchers) == 2
        until(lambda: not journal._watchers and not gateways[1].host.relays)


def test_a_listener_who_does_not_read_is_cut_off():
    async def story() -> None:
        watcher = Watcher(lambda _: None)
        for seq in range(watching.MAX_WAITING + 5):
            watcher.tell([ResponseDone(seq=seq, frame=seq, text="Now.", event=seq + 1)])
        number, content = await watcher.take()
        assert number is None
        assert json.loads(content)["code"] == "slow_client"
        assert watcher.is_done
        assert await watcher.take() is None

    asyncio.run(story())


def test_the_handle_is_not_told():
    watcher = Watcher(lambda _: None)
    watcher.tell([SessionGoingAway(resume="a:secret", reason="the server stops", event=3)])
    assert "secret" not in repr(watcher._waiting)
