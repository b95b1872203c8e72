"""Sessions outlive their engine and their gateway: what an undisturbed session says is said, once and in order."""

import asyncio
import threading
import time
from pathlib import Path

import pytest

from prospect.client.ledger import Ledger
from prospect.errors import UnknownSessionError
from prospect.model.checkpoint import LoadedModel
from prospect.protocol.messages import (
    DurableMessage,
    EmbeddingMessage,
    FrameAppend,
    ServerMessage,
    SessionMoved,
    SessionUpdate,
    TextAppend,
    ThresholdsMessage,
)
from prospect.serving import peers
from prospect.serving import worker as worker_module
from prospect.serving.host import SessionHost
from prospect.serving.settings import Durability, SessionLimits
from prospect.serving.store import Store, StoreUnavailable
from prospect.serving.sweeper import Sweeper
from tests.factories import BACKBONE
from tests.serving.deaths import NUM_FRAMES, TEXTS, Heard, Site, _said, features, run
from tests.serving.models import STEPS
from tests.serving.postgres import PostgresServer


@pytest.fixture(scope="module")
def undisturbed(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Heard:
    heard = run(loaded, tmp_path_factory.mktemp("undisturbed"), "none", {})
    kinds = {message.type for message in heard.messages}
    assert {"state.updated", "response.delta", "response.done", "session.refreshed", "decision"} <= kinds
    return heard


MOMENTS = [3, 9, 20, 33, 47, 60] if BACKBONE == "llama" else [3, 9, 20, 33]
"""A random model of another class says less."""


def same(heard: Heard, undisturbed: Heard) -> None:
    assert heard.durable == undisturbed.durable
    assert heard.decisions == undisturbed.decisions


@pytest.mark.each_backbone
@pytest.mark.parametrize("at", MOMENTS)
def test_the_death_of_an_engine(loaded: LoadedModel, undisturbed: Heard, tmp_path: Path, at: int):
    heard = run(loaded, tmp_path, "none", {at: ["engine dies"]})
    same(heard, undisturbed)
    [moved] = [message for message in heard.messages if message.type == "session.moved"]
    assert moved.lost_frames == 0


@pytest.mark.parametrize("at", MOMENTS)
def test_the_death_of_a_gateway(loaded: LoadedModel, undisturbed: Heard, tmp_path: Path, at: int):
    same(run(loaded, tmp_path, "events", {at: ["gateway dies"]}), undisturbed)


@pytest.mark.parametrize("at", MOMENTS)
def test_both_at_once_with_the_frames_in_the_store(loaded: LoadedModel, undisturbed: Heard, tmp_path: Path, at: int):
    same(run(loaded, tmp_path, "frames", {at: ["engine dies", "gateway dies"]}), undisturbed)


@pytest.mark.parametrize("planned", [False, True])
def test_decisions_that_nobody_has_read_are_in_the_store_with_their_frames(
    loaded: LoadedModel, undisturbed: Heard, tmp_path: Path, planned: bool
):
    """The client has not read a word yet, and a refresh lies between the beginning and the end of both processes.

    Where frames are not written as a rule, a gateway that is replaced writes them.
    """

    async def story() -> list[ServerMessage]:
        site = Site(loaded, f"sqlite:///{tmp_path}/sessions.db", "events" if planned else "frames", None)
        thresholds = ThresholdsMessage(speak=0.5, update=0.45)
        update = SessionUpdate(session_id="a", goal="Make tea", steps=STEPS, thresholds=thresholds, keep=True)
        handle = (await site.gateway.create(update, True)).resume
        ledger = Ledger(update, True, None)
        ledger.created = await site.gateway.resume(SessionUpdate(resume=handle))
        for index in range(NUM_FRAMES):
            if index in TEXTS:
                await site.gateway.text("a", TextAppend(text=TEXTS[index]))
            await site.gateway.push("a", ledger.next_frame(features(index, loaded), index / 2))
        while site.store.find("a").position.get("decided", -1) < NUM_FRAMES - 1:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert site.store.find("a").base["counters"]["frames"] > 0
        if planned:
            await site.happen("gateway stops")
        await site.kill_engine()
        if not planned:
            await site.kill_gateway()
        created = await site.gateway.resume(ledger.resuming())
        heard: list[ServerMessage] = []
        async for message in site.gateway.events("a", created.resume):
            heard.append(message)
            if message.type == "session.moved":
                break
        await site.stop()
        return heard

    heard = asyncio.run(story())
    assert Heard(heard).decisions == undisturbed.decisions
    assert Heard(heard).durable[: len(undisturbed.durable)] == undisturbed.durable


@pytest.mark.parametrize("at", MOMENTS)
def test_both_at_once_without_them(loaded: LoadedModel, undisturbed: Heard, tmp_path: Path, at: int):
    heard = run(loaded, tmp_path, "events", {at: ["gateway dies", "engine dies"]})
    before = [each for each in heard.messages[:at] if isinstance(each, DurableMessage)]
    assert [_said(each) for each in before] == undisturbed.durable[: len(before)]
    events = [event for event, *_ in heard.durable]
    assert events == list(range(1, len(events) + 1)), "none lost, none twice"
    assert set(heard.decisions) <= set(undisturbed.decisions)
    assert heard.num_decided == NUM_FRAMES
    at_move = max(index for index, message in enumerate(heard.messages) if message.type == "session.moved")
    after = [message.type for message in heard.messages[at_move:]]
    if heard.messages[at_move].lost_frames:
        assert after.index("session.refreshed") < after.index("decision"), "the context is built anew from the state"
    else:  # it was built just before
        assert heard.durable == undisturbed.durable


@pytest.mark.parametrize("durability", ["none", "events", "frames"])
def test_one_death_after_the_other(loaded: LoadedModel, undisturbed: Heard, tmp_path: Path, durability: Durability):
    deaths = {8: ["engine dies"]} if durability == "none" else {8: ["engine dies"], 30: ["gateway dies"]}
    same(run(loaded, tmp_path, durability, deaths), undisturbed)


@pytest.mark.parametrize("after", [["gateway dies"], ["engine dies"], []])
def test_the_death_of_the_store(
    loaded: LoadedModel, undisturbed: Heard, tmp_path: Path, postgres: PostgresServer, after: list[str]
):
    """Meanwhile the session speaks on; when the store is back it has all of it, and a second death loses nothing."""
    events = {12: ["store dies"], 34: ["store is back", *after]}
    same(run(loaded, tmp_path, "events", events, postgres), undisturbed)


def test_what_waits_for_a_store_that_is_away_does_not_grow_with_its_frames(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Messages are kept, each of which has to be written; frames only as far back as a refresh."""

    def away(changes: object) -> set[str]:
        raise StoreUnavailable("the store is away")

    async def story() -> tuple[int, int]:
        site = Site(loaded, f"sqlite:///{tmp_path}/sessions.db", "frames", None)
        site.settings = site.settings.model_copy(update={"limits": SessionLimits(max_waiting_frames=4)})
        site.gateway = site._gateway()
        handle = (await site.gateway.create(SessionUpdate(session_id="a", steps=STEPS, keep=True), True)).resume
        ledger = Ledger(SessionUpdate(session_id="a"), True, None)
        ledger.created = await site.gateway.resume(SessionUpdate(resume=handle))
        monkeypatch.setattr(site.store, "write", away)
        stream, most, bases = site.gateway._streams["a"], 0, 0
        for index in range(150):
            await site.gateway.push("a", ledger.next_frame(features(index, loaded), index / 2))
            while stream.inbox.pending:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            most, bases = max(most, len(stream.unwritten.frames)), stream.replay.base["counters"]["frames"]
        monkeypatch.undo()
        await site.stop()
        return most, bases

    most, base = asyncio.run(story())
    assert base > 75, "it was refreshed"
    assert most < 110


def test_a_gateway_that_slept_asks_before_it_speaks(loaded: LoadedModel, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(peers, "WITHIN_S", 0.2)

    async def story() -> None:
        site = Site(loaded, f"sqlite:///{tmp_path}/sessions.db", "events", None)
        asleep, update = site.gateway, SessionUpdate(session_id="a", thresholds=ThresholdsMessage(speak=1.0), keep=True)
        handle = (await asleep.create(update, True)).resume
        monkeypatch.setattr(asleep, "release", lambda session_id: asyncio.sleep(60))
        awake = site._gateway()
        created = await awake.resume(SessionUpdate(resume=handle, last_event=0, decided=-1))
        stale = asleep._streams["a"]
        stale.say(SessionMoved(decided_to=0))  # what it was about to say, which no store holds back
        asleep.lease._held_at -= 60
        assert [message async for message in asleep.events("a", handle)] == []
        assert asleep.open_sessions == []
        await awake.push("a", FrameAppend(embedding=EmbeddingMessage.of(features(0, loaded), loaded.fingerprint)))
        async for message in awake.events("a", created.resume):
            assert message.type == "decision"
            break
        await awake.stop()
        await site.stop()

    asyncio.run(story())


def test_a_session_is_erased_when_it_is_deleted_and_after_its_retention_time(loaded: LoadedModel, tmp_path: Path):
    async def story() -> None:
        site = Site(loaded, f"sqlite:///{tmp_path}/sessions.db", "events", None)
        host, store = site.gateway, site.store
        handles = {}
        for name in "abc":
            update = SessionUpdate(session_id=name, goal="Make tea", thresholds=ThresholdsMessage(speak=1.0))
            handles[name] = (await host.create(update, True)).resume
        await host.close("a")  # over HTTP: DELETE
        assert store.find("a") is None
        await host.close("b", handles["b"])  # on its stream
        assert store.find("b").status == "closed"
        assert [event.payload for event in store.events("b")] != []
        host._mover._settings = site.settings.model_copy(update={"retention_hours": 1e-9})
        await host._sweeper.sweep()
        assert store.find("b") is None
        assert store.find("c").status == "open", "it is in use"
        await site.stop()

    asyncio.run(story())


def test_a_sweep_that_fails_is_followed_by_the_next(host: SessionHost, monkeypatch: pytest.MonkeyPatch):
    async def story() -> None:
        swept = asyncio.Event()

        async def broken() -> None:
            if rounds.append(1) or len(rounds) > 2:
                swept.set()
            raise ZeroDivisionError

        rounds: list[int] = []
        host._limits = host._limits.model_copy(update={"park_after_s": 0.02})
        monkeypatch.setattr(Sweeper, "sweep", lambda sweeper: broken())
        await host.model()
        await asyncio.wait_for(swept.wait(), 5)
        host.check_health()
        await host.stop()

    asyncio.run(story())


def test_what_a_gateway_keeps_of_a_session_without_refreshes_does_not_grow(loaded: LoadedModel, monkeypatch):
    """With the strategy `none` a context never fills up; a move repeats its decisions all the same."""
    monkeypatch.setattr(worker_module, "REBASED_AFTER", 8)

    async def story(die_at: int | None) -> tuple[list[int], list[tuple]]:
        site, kept, decided = Site(loaded, "", "none", None), [], []
        update = SessionUpdate(
            session_id="a", steps=STEPS, context_strategy="none", thresholds=ThresholdsMessage(speak=0.5, update=1.0)
        )
        handle = (await site.gateway.create(update, True)).resume
        heard = site.gateway.events("a", handle)
        for index in range(30):
            frame = FrameAppend(embedding=EmbeddingMessage.of(features(index, loaded), loaded.fingerprint))
            await site.gateway.push("a", frame, handle)
            async for message in heard:
                if message.type == "decision":
                    decided.append((message.seq, message.p_speak, message.p_update))
                    break
            kept.append(len(site.gateway._streams["a"].replay.frames))
            if index == die_at:
                await site.kill_engine()
        await site.stop()
        return kept, decided

    kept, decided = asyncio.run(story(None))
    assert max(kept) <= 10
    assert asyncio.run(story(20))[1] == decided


@pytest.mark.parametrize("at", MOMENTS)
@pytest.mark.parametrize("engine", [[], ["engine dies"]])
def test_a_gateway_that_is_replaced(
    loaded: LoadedModel, undisturbed: Heard, tmp_path: Path, at: int, engine: list[str]
):
    """It says so, and leaves all to its successor, also where the engine is replaced at the same moment."""
    heard = run(loaded, tmp_path, "events", {at: ["gateway stops", *engine]})
    words = [said for said in heard.durable if said[1] != "session.going_away"]
    assert [said[1:] for said in words] == [said[1:] for said in undisturbed.durable]
    assert heard.decisions == undisturbed.decisions
    assert not any(message.lost_frames for message in heard.messages if message.type == "session.moved")


def test_a_gateway_that_stops_while_it_moves_a_session(
    loaded: LoadedModel, undisturbed: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What it writes at its end is not refused as that of the epoch before."""

    class SlowStore(Store):
        def claim(self, session_id: str, seen: int, owner: str) -> int:
            claimed = super().claim(session_id, seen, owner)
            time.sleep(0.3)  # the answer is on its way
            return claimed

    monkeypatch.setitem(globals(), "Store", SlowStore)
    heard = run(loaded, tmp_path, "events", {30: ["engine dies", "gateway stops"]})
    words = [said[1:] for said in heard.durable if said[1] != "session.going_away"]
    assert words == [said[1:] for said in undisturbed.durable]
    assert heard.decisions == undisturbed.decisions


def test_a_handle_is_good_at_another_gateway_as_soon_as_its_client_has_it(loaded: LoadedModel, tmp_path: Path):
    async def story() -> None:
        site = Site(loaded, f"sqlite:///{tmp_path}/sessions.db", "events", None)
        gateways = [site.gateway, site._gateway()]
        handle = (await gateways[0].create(SessionUpdate(session_id="a", keep=True), True)).resume
        for turn in range(8):
            created = await gateways[turn % 2].resume(SessionUpdate(resume=handle))
            assert created.resume.partition(":")[2] in site.store.find("a").tokens
            handle = created.resume
        await gateways[1].stop()
        await site.stop()

    asyncio.run(story())


def test_a_session_that_is_being_closed_is_not_taken_over(loaded: LoadedModel, tmp_path: Path, monkeypatch):
    """Its end is not in the store yet when somebody asks for it at another gateway, or resumes it there."""

    async def story() -> None:
        site = Site(loaded, f"sqlite:///{tmp_path}/sessions.db", "events", None)
        owner, other = site.gateway, site._gateway()
        handle = (await owner.create(SessionUpdate(session_id="a", keep=True), True)).resume
        may_write, write = threading.Event(), site.store.write

        def slow(changes: list) -> set[str]:
            may_write.wait(10)
            return write(changes)

        monkeypatch.setattr(site.store, "write", slow)
        closing = asyncio.create_task(owner.close("a", handle))
        while owner.open_sessions:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await owner.owner_of("a") is None
        assert await other.owner_of("a") == owner.address
        resuming = asyncio.create_task(other.resume(SessionUpdate(resume=handle)))
        await asyncio.sleep(0.1)
        may_write.set()
        with pytest.raises(UnknownSessionError):
            await resuming
        await closing
        assert site.store.find("a").status == "closed"
        assert owner.open_sessions == other.open_sessions == []
        await other.stop()
        await site.stop()

    asyncio.run(story())


def test_an_engine_that_is_there_again_takes_sessions(loaded: LoadedModel, tmp_path: Path):
    async def story() -> None:
        site = Site(loaded, "", "none", None)
        await site.gateway.model()
        for link in site.gateway._pool.links:
            link.leaving = True
        async with asyncio.timeout(5):
            await site.gateway.create(SessionUpdate(session_id="a"), False)
        await site.stop()

    asyncio.run(story())
