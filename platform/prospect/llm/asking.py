"""One chat completion after the other for each conversation, several conversations at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from anyio.from_thread import start_blocking_portal

from prospect.llm.cache import Cache, E
from prospect.llm.client import Endpoint
from prospect.llm.errors import LostRequest
from prospect.llm.settings import EndpointSettings

Settle = Callable[[Sequence[E], Endpoint, Cache[E], Callable[[E], None]], Awaitable[None]]


def ask_all(
    exchanges: Sequence[E],
    settings: EndpointSettings,
    cache: Cache[E],
    settled: Callable[[E], None],
    settle: "Settle[E] | None" = None,
) -> None:
    """Continue every conversation to its end.

    Args:
        exchanges: conversations that are not finished.
        settings: the endpoint.
        cache: keeps each conversation after each answer and each failure.
        settled: called with each finished conversation, in another thread.
        settle: how they are asked; default: `settle_one_by_one`.

    Raises:
        ConfigError: the environment holds no usable key.
        EndpointError: the endpoint cannot be used; what it answered is kept.
    """
    endpoint = Endpoint(settings)
    with start_blocking_portal() as portal:  # a loop of its own: a notebook's thread runs one already
        portal.call(settle or settle_one_by_one, exchanges, endpoint, cache, settled)


def probe(settings: EndpointSettings) -> None:
    """Ask the endpoint one short thing, with the options of all requests.

    Raises:
        ConfigError: the environment holds no usable key.
        EndpointError: the endpoint cannot be used.
    """
    endpoint = Endpoint(settings)
    with start_blocking_portal() as portal:
        portal.call(endpoint.probe)


async def settle_one_by_one(
    conversations: Sequence[E], endpoint: Endpoint, cache: Cache[E], settled: Callable[[E], None]
) -> None:
    """Continues every conversation to its end, kept after each answer and each failure.

    Raises:
        EndpointError: the endpoint cannot be used; requests under way are dropped.
    """
    queue = iter(conversations)

    async def work() -> None:
        for conversation in queue:
            settled(await _settle(conversation, endpoint, cache))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(endpoint.settings.concurrency):
                group.create_task(work())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _settle(conversation: E, endpoint: Endpoint, cache: Cache[E]) -> E:
    settings, times_lost, answers = endpoint.settings, 0, endpoint.answers
    while not conversation.finished(settings.max_retries):
        try:
            answer = await endpoint.ask(conversation.body(settings))
        except LostRequest as lost:
            if not lost.busy or endpoint.answers == answers:  # a busy endpoint that answers others is not lost
                times_lost += 1
            answers = endpoint.answers
            conversation = conversation.lost(str(lost))
            await asyncio.to_thread(cache.keep, conversation)
            if not lost.again:
                break
            if times_lost > settings.transport_retries:
                endpoint.give_up(lost)
                break
            await endpoint.back_off(lost, times_lost)
        else:
            times_lost = 0
            conversation = conversation.answered(answer)
            await asyncio.to_thread(cache.keep, conversation)
    return conversation
