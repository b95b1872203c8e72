"""The Serve deployment that owns sessions, and the gateway's way to it."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from ray.serve.schema import LoggingConfig

from prospect.config import Config
from prospect.errors import ProspectError, UnknownSessionError
from prospect.model.checkpoint import load_model
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.protocol import (
    FrameAppend,
    FrameOutcome,
    ModelCard,
    ServerMessage,
    SessionClosed,
    SessionCreated,
    SessionUpdate,
    SessionView,
    StateMap,
)
from prospect.tracking.tracking import Tracking
from serve.encoder import LiveEncoder, encoder_of
from serve.host import SessionHost

MANY = 10_000
"""Requests that Serve lets through at once: streams are requests that last, and the engine does the refusing."""

QUIET = LoggingConfig(enable_access_log=False)
"""Serve's access log has two lines for each frame."""

STICKY = RequestRouterConfig(
    # Serve imports a path where it routes; its annotation knows the serialised form only.
    request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",  # type: ignore[arg-type]
    request_router_kwargs={"num_virtual_nodes": 100, "num_fallback_replicas": 0},
)
"""A session's calls go to the one replica that its id hashes to, and never to another."""


class Engine(SessionHost):
    """A `SessionHost` over the served model, on whichever node Serve puts it."""

    def __init__(self, config: Config) -> None:
        folder = Tracking(config.tracking, config.storage.root).resolve(config.serving.model)
        loaded = load_model(folder, cache=Path(config.storage.root) / "cache")
        equivalent_to = config.vision.equivalent_to
        encoder = encoder_of(loaded, equivalent_to)
        context = config.context.over(loaded.manifest.get("context", {}))
        accepted = {*equivalent_to, *({encoder.fingerprint} if encoder else ())}
        engine = StreamingEngine(loaded, context, config.streaming, accepted)
        super().__init__(engine, LiveEncoder(encoder) if encoder else None, config.serving.limits)

    async def answer(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the host. A refusal travels as a value: Serve logs a stack trace for what is raised."""
        try:
            return await getattr(self, method)(*arguments)
        except ProspectError as refusal:
            return refusal


EngineDeployment = serve.deployment(
    name="Engine", max_ongoing_requests=MANY, request_router_config=STICKY, logging_config=QUIET
)(Engine)


class RemoteCore:
    """`serve.host.Core` behind a handle; a session that died with its engine is an unknown one."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def model(self) -> ModelCard:
        return await self._handle.model.remote()

    async def create(self, update: SessionUpdate, stream: bool) -> SessionCreated:
        assert update.session_id is not None
        return await self._call(update.session_id, "create", update, stream)

    async def resume(self, handle: str) -> SessionCreated:
        return await self._call(handle.partition(":")[0], "resume", handle)

    async def push(self, session_id: str, frame: FrameAppend) -> None:
        await self._call(session_id, "push", session_id, frame)

    async def decide(self, session_id: str, frames: Sequence[FrameAppend]) -> list[FrameOutcome]:
        return await self._call(session_id, "decide", session_id, frames)

    async def text(self, session_id: str, text: str) -> None:
        await self._call(session_id, "text", session_id, text)

    async def patch(self, session_id: str, changes: StateMap) -> StateMap:
        return await self._call(session_id, "patch", session_id, changes)

    async def view(self, session_id: str) -> SessionView:
        return await self._call(session_id, "view", session_id)

    async def close(self, session_id: str) -> SessionClosed:
        return await self._call(session_id, "close", session_id)

    async def leave(self, session_id: str, handle: str) -> None:
        await self._call(session_id, "leave", session_id, handle)

    async def events(self, session_id: str) -> AsyncIterator[ServerMessage]:
        answers = self._handle.options(session_id=session_id, method_name="events", stream=True).remote(session_id)
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


def _lost(session_id: str) -> UnknownSessionError:
    message = f"session_id: the engine of session {session_id!r} is gone; open it again"
    return UnknownSessionError(message, field="session_id")
