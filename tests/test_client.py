"""The Python client against a real engine behind a real socket (uvicorn, without Ray)."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from prospect.client import AsyncProspectClient, ProspectClient, ServerError, ledger
from prospect.errors import ProspectError
from prospect.model.checkpoint import LoadedModel, load_model
from prospect.protocol.messages import ErrorMessage, ServerMessage, SessionCreated, SessionUpdate
from prospect.serving.api import build_api
from prospect.serving.live_encoder import LiveEncoder, encoder_of
from prospect.serving.local import local_host
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from tests.cutter import Cutter
from tests.serving.models import ALWAYS, CONTEXT, NEVER, STEPS, picture, write_model
from tests.serving.uvicorn_server import listening


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(write_model(tmp_path_factory.mktemp("client") / "model"))


@pytest.fixture(scope="module")
def url(loaded: LoadedModel) -> Iterator[str]:
    encoder = encoder_of(loaded)
    assert encoder is not None
    engine = StreamingEngine(loaded, CONTEXT, StreamingSettings(cooldown_frames=0, speak_hysteresis=None))
    api = build_api(local_host(engine, LiveEncoder(encoder)))
    with listening(api) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[ProspectClient]:
    with ProspectClient(url) as client:
        yield client


def test_a_session_over_http(client: ProspectClient):
    session_id = client.create("Make tea", STEPS, thresholds=NEVER).session_id
    client.text(session_id, "Hello.")
    assert [outcome.seq for outcome in client.push(session_id, picture(0), picture(1, "JPEG"))] == [0, 1]
    assert client.patch(session_id, S1="completed").state["S1"] == "completed"
    assert client.push(session_id, picture(2), seq=2)[0].state["S1"] == "completed"
    assert client.view(session_id).next_seq == 3
    assert client.close(session_id).frames == 3


def test_a_live_session(client: ProspectClient):
    with client.live("Make tea", STEPS, thresholds=ALWAYS) as live:
        live.text("Hello.")
        sent = [live.push(picture(i), pts=i / 2) for i in range(3)]
        live.patch(S3="in_progress")
        live.close()
        heard = list(live)
    assert [m.seq for m in heard if m.type == "decision"] == sent == [0, 1, 2]
    assert [m.frame for m in heard if m.type == "response.done"] == [0, 1, 2]
    assert heard[-1].type == "session.closed"


def test_embeddings_declare_their_encoder(client: ProspectClient, url: str, loaded: LoadedModel):
    embedding = np.zeros((1, 64), np.float16)
    with client.live(thresholds=NEVER) as live:
        live.push(embedding)
        assert live.receive(timeout=20).type == "decision"
    session_id = client.create().session_id
    with pytest.raises(ProspectError, match="embeddings need that of their encoder"):
        client.push(session_id, embedding)
    with ProspectClient(url, fingerprint="other") as stranger, pytest.raises(ServerError) as refused:
        stranger.push(session_id, embedding)
    assert refused.value.code == "fingerprint_mismatch"
    assert loaded.fingerprint in str(refused.value)


def test_a_kept_session_goes_on_in_another_stream(client: ProspectClient):
    with client.live(keep=True, thresholds=NEVER) as live:
        live.push(picture(0))
        live.receive(timeout=20)
    with client.resume(live.created.resume) as again:
        assert again.session_id == live.session_id
        assert again.push(picture(1)) == 1
        assert again.receive(timeout=20).seq == 1
    client.close(live.session_id)


def test_a_stream_that_ends_before_its_session_does_is_said_to_be_lost(client: ProspectClient):
    with client.live(keep=True, thresholds=NEVER) as live, client.resume(live.created.resume) as again:
        with pytest.raises(ServerError, match=r"ended with code 4001 before session\.closed; resume") as lost:
            list(live)
        assert lost.value.code == "stream_lost"
        again.close()
        assert [message.type for message in again] == ["session.closed"]


@pytest.mark.parametrize("seed", range(3))
def test_a_client_connects_again_and_nothing_is_lost(client: ProspectClient, url: str, seed: int):
    """Frames are sent again until they are decided, and what did not arrive is heard once and in order."""
    undisturbed, disturbed = [], []
    cutter = Cutter(url, seed, cuts=5)
    with ProspectClient(cutter.url) as broken:
        for heard, way in ((undisturbed, client), (disturbed, broken)):
            with way.live("Make tea", STEPS, thresholds=ALWAYS, session_id=f"cut-{seed}-{way is broken}") as live:
                pushing = threading.Thread(target=lambda live=live: [live.push(picture(i)) for i in range(16)])
                pushing.start()
                decided = 0
                while decided < 16:
                    message = live.receive(timeout=30)
                    heard.append(message)
                    decided += message.type == "decision"
                pushing.join()
                live.close()
                heard.extend(live)
    assert cutter.left <= 0, "it was cut as often as it should be"
    cutter.close()

    def told(messages: list[ServerMessage]) -> dict[str, list[tuple]]:
        """Texts are drawn by the session's id, and which frames decide together by the moment."""
        decisions = [m.seq for m in messages if m.type == "decision"]
        events = [m.event for m in messages if getattr(m, "event", None)]
        return {
            "decisions": decisions,
            "gaps": sorted(set(range(1, events[-1])) - set(events)),
            "last": messages[-1].type,
        }

    assert told(disturbed) == told(undisturbed)
    assert told(disturbed) == {"decisions": list(range(16)), "gaps": [], "last": "session.closed"}
    events = [m.event for m in disturbed if getattr(m, "event", None)]
    assert events == sorted(set(events))


def test_a_stream_that_this_side_leaves_has_ended(client: ProspectClient):
    with client.live(thresholds=NEVER) as live:
        live.disconnect()
        assert list(live) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_session_that_is_closed_while_its_connection_breaks_is_heard_to_its_end(url: str, seed: int):
    cutter = Cutter(url, seed + 20, cuts=3)
    with ProspectClient(cutter.url) as client, client.live("Make tea", STEPS, thresholds=ALWAYS) as live:
        for number in range(12):
            live.push(picture(number))
        live.close()
        heard = list(live)
    cutter.close()
    assert [message.seq for message in heard if message.type == "decision"] == list(range(12))
    assert heard[-1].type == "session.closed"


@pytest.mark.parametrize(("code", "is_kept"), [("unknown_session", True), ("unavailable", True), ("bad_image", False)])
def test_a_frame_is_kept_where_a_gateway_no_longer_has_its_session(code: str, is_kept: bool):
    kept = ledger.Ledger(SessionUpdate(goal="Make tea"), True, None)
    kept.created = SessionCreated(
        session_id="a", resume="a:0", fps=2, fingerprint="f", tokens_per_frame=1, next_seq=0, state={}
    )
    frame = kept.next_frame(picture(0), None)
    kept.keep(frame)
    kept.note(ErrorMessage(code=code, message="no", seq=0))
    assert kept.to_send_again() == ([frame] if is_kept else [])


def test_a_client_that_leaves_while_it_connects_again_is_done(url: str):
    cutter = Cutter(url, seed=0, cuts=1)
    client = ProspectClient(cutter.url)
    live = client.live(thresholds=NEVER)
    heard: list[ServerMessage] = []
    listening = threading.Thread(target=lambda: heard.extend(live))
    listening.start()
    cutter.close()  # nobody answers any more
    with suppress(ServerError, ConnectionClosed):
        while cutter.left > 0:
            live._socket.send(" " * 2000)
    live.disconnect()
    listening.join(20)
    assert not listening.is_alive()


def test_the_last_event_is_heard_where_its_acknowledgement_cannot_be_sent(
    client: ProspectClient, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ledger, "ACKNOWLEDGED_EVERY", 1)
    with client.live(thresholds=ALWAYS) as live:
        live.push(picture(0))
        live.close()
        heard = list(live)
    assert heard[-1].type == "session.closed"
    assert [message.event for message in heard if getattr(message, "event", None)] == list(
        range(1, heard[-1].event + 1)
    )


def test_with_asyncio_a_session_is_the_same(url: str, loaded: LoadedModel):
    async def story() -> None:
        async with AsyncProspectClient(url) as client:
            assert (await client.model()).fingerprint == loaded.fingerprint
            session_id = (await client.create("Make tea", STEPS, thresholds=NEVER)).session_id
            await client.text(session_id, "Hello.")
            assert [each.seq for each in await client.push(session_id, picture(0), picture(1))] == [0, 1]
            assert (await client.patch(session_id, S1="completed")).state["S1"] == "completed"
            assert (await client.view(session_id)).next_seq == 2
            assert (await client.close(session_id)).frames == 2
            with pytest.raises(ServerError, match="is open here"):
                await client.view(session_id)

    asyncio.run(story())


@pytest.mark.parametrize("seed", range(2))
def test_with_asyncio_a_connection_is_made_again_too(url: str, seed: int):
    async def story() -> list[ServerMessage]:
        heard: list[ServerMessage] = []
        async with AsyncProspectClient(cutter.url) as client, client.live(steps=STEPS, thresholds=ALWAYS) as live:

            async def push() -> None:
                for number in range(16):
                    await live.push(picture(number))

            pushing = asyncio.create_task(push())
            while sum(message.type == "decision" for message in heard) < 16:
                heard.append(await live.receive())
            await pushing
            await live.close()
            return heard + [message async for message in live]

    cutter = Cutter(url, seed + 10, cuts=4)
    heard = asyncio.run(story())
    cutter.close()
    assert cutter.left <= 0
    assert [message.seq for message in heard if message.type == "decision"] == list(range(16))
    events = [message.event for message in heard if getattr(message, "event", None)]
    assert events == list(range(1, len(events) + 1))
    assert heard[-1].type == "session.closed"


def test_what_the_server_refuses_is_an_error_in_its_words(client: ProspectClient, url: str):
    with pytest.raises(ServerError, match="no session 'none' is open here") as unknown:
        client.view("none")
    assert (unknown.value.code, unknown.value.field) == ("unknown_session", "session_id")
    with pytest.raises(ServerError, match="no session with this handle"):
        client.resume("a:b")
    with ProspectClient(f"{url}/docs") as lost, pytest.raises(ServerError):
        lost.model()


def test_the_model_s_card(client: ProspectClient, loaded: LoadedModel):
    assert (client.model().fingerprint, client.model().dim) == (loaded.fingerprint, 64)
