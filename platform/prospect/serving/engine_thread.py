"""The thread that an engine runs on, beside the event loop of its clients."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from prospect.streaming.types import EngineEvent

if TYPE_CHECKING:
    from prospect.streaming.engine import StreamingEngine

T = TypeVar("T")


class EngineThread:
    """One thread for everything that touches an engine: a plain object that must not be entered twice."""

    def __init__(self, engine: "StreamingEngine") -> None:
        self.engine = engine
        self._thread = ThreadPoolExecutor(1, "engine")
        self._work = asyncio.Event()

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run `function` between two steps, and wake `drive` for what it may have brought."""
        result = await self._run(function, *arguments)
        self._work.set()
        return result

    async def drive(self, publish: Callable[[str, EngineEvent], None]) -> None:
        """Step the engine while it has work, and hand each session's events to `publish`; sleep until the next call."""
        while True:
            await self._work.wait()
            self._work.clear()
            busy = True
            while busy:
                events, busy = await self._run(lambda: (self.engine.step(), self.engine.has_work()))
                for session_id, event in events:
                    publish(session_id, event)

    def shut_down(self) -> None:
        self._thread.shutdown(wait=False)

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
