"""Calls that a client which hangs up does not cut off in the middle."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


def shielded(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Let a method run to its end even if its caller is cancelled: a client that hangs up leaves nothing half done."""
    running: set[asyncio.Task[T]] = set()

    @functools.wraps(method)
    async def whole(*arguments: P.args, **named: P.kwargs) -> T:
        task = asyncio.create_task(method(*arguments, **named))
        running.add(task)
        task.add_done_callback(running.discard)
        return await asyncio.shield(task)

    return whole
