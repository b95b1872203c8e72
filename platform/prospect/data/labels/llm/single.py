"""One chat completion after the other for each video, several videos at a time."""

import asyncio
from collections.abc import Callable, Sequence

from prospect.data.labels.llm.cache import Cache, LLMExchange
from prospect.data.labels.llm.client import Endpoint
from prospect.data.labels.llm.errors import LostRequest


async def settle_one_by_one(
    conversations: Sequence[LLMExchange], endpoint: Endpoint, cache: Cache, settled: Callable[[LLMExchange], None]
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


async def _settle(conversation: LLMExchange, endpoint: Endpoint, cache: Cache) -> LLMExchange:
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
