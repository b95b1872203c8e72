"""The thread that an engine runs on, beside the event loop of its gateways."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class EngineThread:
    """One thread for everything that touches an engine: a plain object that must not be entered twice."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "engine")
        self._work = asyncio.Event()

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run `function` between two steps, and wake `drive` for what it may have brought."""
        result = await self._run(function, *arguments)
        self._work.set()
        return result

    async def drive(self, step: Callable[[], tuple[T, bool]], publish: Callable[[T], None]) -> None:
        """Step while there is work, and hand each step's result to `publish`; sleep until the next call.

        Args:
            step: runs on the thread; returns its result and whether there is more work.
            publish: runs in the event loop.
        """
        while True:
            await self._work.wait()
            self._work.clear()
            busy = True
            while busy:
                result, busy = await self._run(step)
                publish(result)

    def shut_down(self) -> None:
        self._thread.shutdown(wait=False)

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
