"""The gateway's connection to the engines: a `prospect.serving.core.Core` over a Serve handle. Imports no torch."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any, TypeVar

from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from ray.serve.schema import LoggingConfig

from prospect.errors import ProspectError, UnknownSessionError, session_error
from prospect.protocol.messages import (
    FrameAppend,
    FrameOutcome,
    ModelCard,
    ServerMessage,
    SessionClosed,
    SessionCreated,
    SessionUpdate,
    SessionView,
    StateMap,
    Transcript,
)

T = TypeVar("T")

MANY = 10_000
"""Requests that Serve lets through at once: streams are requests that last, and the engine does the refusing."""

ANSWERS_WITHIN_S = 10.0
"""Seconds within which an engine says what it serves, or opens a session."""

QUIET = LoggingConfig(enable_access_log=False)
"""Serve's access log has two lines for each frame."""


class RemoteCore:
    """Calls the engine that has the session; a session that died with its engine is unknown."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def health(self) -> None:
        await self._handle.health.remote()

    async def model(self) -> ModelCard:
        return await _in_time(self._handle.model.remote())

    async def create(self, update: SessionUpdate, stream: bool) -> SessionCreated:
        assert update.session_id is not None
        return await _in_time(self._call(update.session_id, "create", update, stream))

    async def resume(self, update: SessionUpdate) -> SessionCreated:
        assert update.resume is not None
        return await self._call(update.resume.partition(":")[0], "resume", update)

    async def push(self, session_id: str, frame: FrameAppend, handle: str | None = None) -> None:
        await self._call(session_id, "push", session_id, frame, handle)

    async def decide(self, session_id: str, frames: Sequence[FrameAppend]) -> list[FrameOutcome]:
        return await self._call(session_id, "decide", session_id, frames)

    async def text(self, session_id: str, text: str, handle: str | None = None) -> None:
        await self._call(session_id, "text", session_id, text, handle)

    async def patch(self, session_id: str, changes: StateMap, handle: str | None = None) -> StateMap:
        return await self._call(session_id, "patch", session_id, changes, handle)

    async def acknowledge(self, session_id: str, event: int, handle: str) -> None:
        await self._call(session_id, "acknowledge", session_id, event, handle)

    async def view(self, session_id: str) -> SessionView:
        return await self._call(session_id, "view", session_id)

    async def transcript(self, session_id: str) -> Transcript:
        return await self._call(session_id, "transcript", session_id)

    async def record(self, session_id: str) -> dict[str, Any]:
        return await self._call(session_id, "record", session_id)

    async def close(self, session_id: str, handle: str | None = None) -> SessionClosed:
        return await self._call(session_id, "close", session_id, handle)

    async def leave(self, session_id: str, handle: str) -> None:
        await self._call(session_id, "leave", session_id, handle)

    async def events(self, session_id: str, handle: str) -> AsyncIterator[ServerMessage]:
        streaming = self._handle.options(session_id=session_id, method_name="events", stream=True)
        answers = streaming.remote(session_id, handle)
        assert isinstance(answers, DeploymentResponseGenerator)
        try:
            async for message in answers:
                yield message
        except (RayActorError, RayServeException) as error:
            raise _lost(session_id) from error

    async def _call(self, session_id: str, method: str, *arguments: Any) -> Any:
        try:
            handle = self._handle.options(session_id=session_id, method_name="answer")
            answer = await handle.remote(method, *arguments)
        except (RayActorError, RayServeException) as error:
            raise _lost(session_id) from error
        if isinstance(answer, ProspectError):
            raise answer
        return answer


async def _in_time(answer: Awaitable[T]) -> T:
    """Serve lets a call wait for as long as no engine is there; a client is told after a few seconds."""
    try:
        return await asyncio.wait_for(answer, ANSWERS_WITHIN_S)
    except (TimeoutError, RayActorError, RayServeException) as error:
        message = f"no engine has answered within {ANSWERS_WITHIN_S:g} seconds; try again"
        raise session_error("unavailable", message) from error


def _lost(session_id: str) -> UnknownSessionError:
    message = f"session_id: the engine of session {session_id!r} is gone; open it again"
    return UnknownSessionError(message, field="session_id")
