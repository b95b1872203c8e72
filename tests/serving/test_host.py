"""The host's own promises: nothing is left half done, and one engine serves many sessions in order."""

import asyncio

import pytest

from prospect.errors import UnknownSessionError
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
    async def push_all(session_id: str) -> None:
        await host.create(SessionUpdate(session_id=session_id, thresholds=QUIET), True)
        for seq in range(6):
            await host.push(session_id, FrameAppend(seq=seq, image=picture(seq)))

    async def listen(session_id: str) -> list[int]:
        closing = asyncio.create_task(host.close(session_id))
        heard = [message async for message in host.events(session_id)]
        assert (await closing).frames == 6
        return [message.seq for message in heard if message.type == "decision"]

    async def story() -> None:
        await asyncio.gather(*map(push_all, "abc"))
        assert await asyncio.gather(*map(listen, "abc")) == [list(range(6))] * 3
        await host.stop()

    asyncio.run(story())
