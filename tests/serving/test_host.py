"""The host's own promises: nothing is left half done, and one engine serves many sessions in order."""

import asyncio

import pytest

from prospect.errors import SessionError, UnknownSessionError
from prospect.protocol.messages import FrameAppend, SessionUpdate, ThresholdsMessage
from prospect.serving.host import SessionHost
from tests.serving.models import picture

QUIET = ThresholdsMessage(speak=1.0, update=1.0)


async def hang_up(call) -> None:
    """Starts a call and gives it up at once."""
    task = asyncio.create_task(call)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_client_that_hangs_up_leaves_nothing_half_done(host: SessionHost):
    async def story() -> None:
        await hang_up(host.create(SessionUpdate(session_id="a", thresholds=QUIET)))
        while not host.open_sessions:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await hang_up(host.decide("a", [FrameAppend(image=picture(0)), FrameAppend(image=picture(1))]))
        (third,) = await host.decide("a", [FrameAppend(image=picture(2))])
        assert (third.seq, third.frame) == (2, 2)
        await hang_up(host.close("a"))
        with pytest.raises(UnknownSessionError):
            await host.view("a")
        await host.create(SessionUpdate(session_id="a"))
        await host.stop()

    asyncio.run(story())


def test_many_sessions_are_decided_in_their_own_order(host: SessionHost):
    async def push_all(session_id: str) -> str:
        created = await host.create(SessionUpdate(session_id=session_id, thresholds=QUIET), True)
        for seq in range(6):
            await host.push(session_id, FrameAppend(seq=seq, image=picture(seq)))
        return created.resume

    async def listen(session_id: str, handle: str) -> list[int]:
        closing = asyncio.create_task(host.close(session_id))
        heard = [message async for message in host.events(session_id, handle)]
        assert (await closing).frames == 6
        return [message.seq for message in heard if message.type == "decision"]

    async def story() -> None:
        handles = await asyncio.gather(*map(push_all, "abc"))
        assert await asyncio.gather(*map(listen, "abc", handles)) == [list(range(6))] * 3
        await host.stop()

    asyncio.run(story())


def test_what_an_older_connection_sends_or_asks_for_is_not_taken(host: SessionHost):
    """Its messages may still be on their way when the newer one has its answer."""

    async def story() -> None:
        older = (await host.create(SessionUpdate(session_id="a", thresholds=QUIET), True)).resume
        await host.resume(SessionUpdate(resume=older))
        with pytest.raises(SessionError, match="goes on in another one") as refused:
            await host.push("a", FrameAppend(seq=0, image=picture(0)), older)
        assert refused.value.code == "taken_over"
        assert [message async for message in host.events("a", older)] == []
        assert (await host.resume(SessionUpdate(resume=older))).next_seq == 0, "the newer one has not spoken"
        newer = (await host.resume(SessionUpdate(resume=older))).resume
        await host.push("a", FrameAppend(seq=0, image=picture(0)), newer)
        with pytest.raises(UnknownSessionError):
            await host.resume(SessionUpdate(resume=older))
        await host.stop()

    asyncio.run(story())


def test_a_closed_session_says_so_to_a_client_that_comes_back(host: SessionHost):
    async def story() -> None:
        handle = (await host.create(SessionUpdate(session_id="a", steps=("boil",), thresholds=QUIET), True)).resume
        await host.push("a", FrameAppend(seq=0, image=picture(0)), handle)
        await host.close("a", handle)
        created = await host.resume(SessionUpdate(resume=handle, last_event=0, decided=-1))
        assert (created.next_seq, created.state) == (1, {"S1": "not_started"})
        heard = [message.type async for message in host.events("a", created.resume)]
        assert heard == ["decision", "session.closed"]
        await host.create(SessionUpdate(session_id="a"))
        with pytest.raises(UnknownSessionError):
            await host.resume(SessionUpdate(resume=created.resume))
        await host.stop()

    asyncio.run(story())


def test_a_frame_that_meets_a_defect_may_be_left_out(host: SessionHost, monkeypatch: pytest.MonkeyPatch):
    async def broken(image: bytes) -> None:
        raise RuntimeError("out of memory")

    async def story() -> None:
        await host.create(SessionUpdate(session_id="a", thresholds=QUIET))
        with monkeypatch.context() as patch:
            patch.setattr(host._encoder, "encode", broken)
            with pytest.raises(RuntimeError):
                await host.push("a", FrameAppend(seq=0, image=picture(0)))
        await host.push("a", FrameAppend(seq=1, image=picture(1)))
        assert (await host.close("a")).frames == 1
        await host.stop()

    asyncio.run(story())
