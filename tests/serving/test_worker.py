"""An engine's side of a session that changes its gateway."""

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from prospect.errors import DataError
from prospect.serving.worker import EngineWorker
from prospect.streaming.engine import StreamingEngine
from tests.serving.models import CONTEXT, STEPS


class Gateway:
    """Hears what an engine tells the connection of a gateway."""

    def __init__(self) -> None:
        self.frames: list[int] = []

    def notify(self, operation: str, session_id: str, epoch: int, first: int, events: list[Any], *log: Any) -> None:
        self.frames += [content["frame"] for kind, content in events if kind == "decision"]

    def close(self) -> None:
        """It is told when the engine ends."""

    async def until_decided(self, frame: int) -> None:
        async with asyncio.timeout(10):
            while frame not in self.frames:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@pytest.fixture
def engine(loaded, streaming_settings) -> StreamingEngine:
    return StreamingEngine(loaded, CONTEXT, streaming_settings)


def test_frames_of_the_earlier_gateway_that_come_late_are_not_the_sessions(engine: StreamingEngine):
    """They are on their way when the session is handed over; the new gateway's client sends them again."""
    dim = engine.loaded.model.config.vision_dim
    data = np.zeros((1, dim), np.float16).tobytes()

    def frames(*seqs: int) -> list[Any]:
        return [(seq, [], data, [1, dim]) for seq in seqs]

    async def story() -> None:
        worker, first, second = EngineWorker(engine), Gateway(), Gateway()
        await worker.start("127.0.0.1", "secret")
        await worker.answer(first, "open", ["a", 1, {"goal": "Make tea", "steps": STEPS}])
        worker.notice(first, "frames", [("a", 1, frames(0))])
        await first.until_decided(0)
        busy = threading.Event()
        held = asyncio.create_task(worker._thread.call(busy.wait))
        await asyncio.sleep(0)
        worker.notice(first, "frames", [("a", 1, frames(1, 2))])
        await asyncio.sleep(0)
        adopting = asyncio.create_task(worker.answer(second, "adopt", ["a", 2, 0]))
        await asyncio.sleep(0)
        worker.notice(first, "frames", [("a", 1, frames(3))])
        await asyncio.sleep(0)
        busy.set()
        adopted = await adopting
        assert adopted["seqs"] == [1, 2]
        assert adopted["log"]["waiting"]["frames"]["count"] == 2
        worker.notice(second, "frames", [("a", 2, frames(3, 4))])
        await second.until_decided(4)
        assert second.frames == [1, 2, 3, 4]
        assert engine.counters("a").frames == 5
        await held
        await worker.stop()

    asyncio.run(story())


def test_texts_of_a_new_session_are_read_while_the_engines_thread_is_at_work(engine: StreamingEngine):
    async def story() -> None:
        worker, gateway, busy = EngineWorker(engine), Gateway(), threading.Event()
        await worker.start("127.0.0.1", "secret")
        held = asyncio.create_task(worker._thread.call(busy.wait))
        with pytest.raises(DataError, match="goal and knowledge take"):
            await asyncio.wait_for(
                worker.answer(gateway, "open", ["a", 1, {"goal": "tea " * 5000, "steps": STEPS}]), 20
            )
        opening = asyncio.create_task(worker.answer(gateway, "open", ["a", 1, {"goal": "Make tea", "steps": STEPS}]))
        made = engine._parts.builder._remembered.cache_info
        while not made().currsize:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not opening.done()
        misses = made().misses
        busy.set()
        await opening
        assert made().misses == misses, "the engine's thread made no context anew"
        await held
        await worker.stop()

    asyncio.run(story())
