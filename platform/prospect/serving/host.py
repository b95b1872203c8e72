"""The live sessions of one engine, without Ray: who may open, resume and close them, and for how long they live."""

import asyncio
import dataclasses
import functools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

from prospect.dialogue.timeline import FPS
from prospect.errors import UnknownSessionError, session_error
from prospect.protocol.messages import (
    CAPABILITIES,
    ErrorMessage,
    FrameAppend,
    FrameOutcome,
    ModelCard,
    ServerMessage,
    SessionClosed,
    SessionCreated,
    SessionGoingAway,
    SessionUpdate,
    SessionView,
    StateMap,
    Transcript,
    TranscriptEntry,
    state_map,
)
from prospect.serving.engine_thread import EngineThread
from prospect.serving.journal import Journal
from prospect.serving.settings import SessionLimits
from prospect.serving.stream import Stream
from prospect.streaming.types import EngineEvent, Failed, SessionSpec

if TYPE_CHECKING:
    from prospect.serving.live_encoder import LiveEncoder
    from prospect.streaming.engine import StreamingEngine

log = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")
ENDED_FOR_S = 60.0
"""Seconds for which a closed session can be resumed, to hear its end."""
CloseReason = Literal["client", "idle", "disconnected"]


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


class SessionHost:
    """The sessions of one engine: the `prospect.serving.core.Core` of this process.

    The engine's loop starts with the first session, in that session's event loop.

    Args:
        engine: decides the frames.
        encoder: of pictures; None: clients send embeddings.
        settings: limits of the sessions.
        version: of the served model, for its card.
    """

    def __init__(
        self,
        engine: "StreamingEngine",
        encoder: "LiveEncoder | None" = None,
        settings: SessionLimits | None = None,
        version: str = "",
    ) -> None:
        self._engine, self._version = engine, version
        self._encoder = encoder
        self._settings = settings or SessionLimits()
        self._thread = EngineThread(engine)
        self._streams: dict[str, Stream] = {}
        self._ended: dict[str, Stream] = {}
        """Closed not long ago: their clients may have lost the connection before they heard of it."""
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def open_sessions(self) -> list[str]:
        return list(self._streams)

    # Sessions ----------------------------------------------------------------------------------------------

    async def health(self) -> None:
        """Return once the engine's thread is free for a moment.

        Raises:
            RuntimeError: the engine's loop has ended.
        """
        self.check_health()
        await self._thread.call(lambda: None)

    async def model(self) -> ModelCard:
        loaded = self._engine.loaded
        return ModelCard(
            name=str(loaded.manifest.get("model", {}).get("name", "")),
            version=self._version,
            fingerprint=loaded.fingerprint,
            fps=FPS,
            tokens_per_frame=loaded.model.config.tokens_per_frame,
            dim=loaded.model.config.vision_dim,
            accepts_images=self._encoder is not None,
        )

    @shielded
    async def create(self, update: SessionUpdate, stream: bool = False) -> SessionCreated:
        """Open a session. With `stream`, its messages are kept for `events` from the first one on."""
        self._ensure_running()
        session_id = update.session_id or secrets.token_hex(16)
        spec = SessionSpec(
            goal=update.goal,
            steps=update.steps,
            knowledge=update.knowledge,
            dataset=update.dataset,
            speak_threshold=update.thresholds.speak,
            update_threshold=update.thresholds.update,
        )
        await self._thread.call(self._engine.open, session_id, spec)
        journal = Journal(self._settings.max_unread_messages, self._engine.settings.max_waiting_frames)
        opened = Stream(session_id, update, self._thread, self._encoder, journal)
        if stream:
            opened.reader = opened.journal.read()
        self._streams[session_id] = opened
        self._ended.pop(session_id, None)
        return await self._created(opened)

    async def resume(self, update: SessionUpdate) -> SessionCreated:
        """Continue a session on a new stream; the old one ends. See `Journal.read` for what is sent again."""
        session_id, _, token = (update.resume or "").partition(":")
        stream = self._streams.get(session_id) or self._ended.get(session_id)
        if stream is None or not stream.knows(token):
            raise UnknownSessionError("resume: no session with this handle is open here", field="resume")
        stream.touched = time.monotonic()
        stream.take_over(update, token)
        return await self._created(stream)

    @shielded
    async def close(self, session_id: str, handle: str | None = None) -> SessionClosed:
        """Close the session once the frames taken so far are decided."""
        stream = self._stream(session_id, handle)
        async with stream.lock:
            await asyncio.gather(*(stream.outcome(seq) for seq in stream.pending))
            return await self._end(stream, "client")

    @shielded
    async def leave(self, session_id: str, handle: str) -> None:
        """Close the session whose stream, named by `handle`, has lost its client, unless the session is to be kept."""
        stream = self._streams.get(session_id)
        if stream is None or stream.handle != handle:  # closed, or continued by another stream
            return
        if stream.update.keep:
            stream.journal.leave()
        else:
            await self._end(stream, "disconnected")

    async def view(self, session_id: str) -> SessionView:
        stream = self._stream(session_id)
        state, counters = await self._thread.call(
            lambda: (self._engine.state(session_id), dataclasses.asdict(self._engine.counters(session_id)))
        )
        return SessionView(
            session_id=session_id,
            goal=stream.update.goal,
            steps=list(stream.update.steps),
            state=state_map(state),
            next_seq=stream.next_seq,
            waiting=len(stream.pending),
            counters=counters,
        )

    async def transcript(self, session_id: str) -> Transcript:
        self._stream(session_id)
        events, forgot = await self._thread.call(self._engine.history, session_id)
        entries = [TranscriptEntry.of(frame, each) for frame, each in sorted(events.items())]
        return Transcript(session_id=session_id, complete=not forgot, entries=entries)

    async def record(self, session_id: str) -> dict[str, Any]:
        """The session so far as a canonical record; raises as `StreamingEngine.record`."""
        self._stream(session_id)
        record = await self._thread.call(self._engine.record, session_id)
        return record.model_dump(mode="json", exclude_defaults=True)

    async def events(self, session_id: str, handle: str) -> AsyncIterator[ServerMessage]:
        """Yield the messages of a session on a stream until it is closed or another stream takes it over."""
        stream = self._streams.get(session_id) or self._ended.get(session_id)
        reader = stream.reader if stream is not None and stream.handle == handle else None
        if reader is not None:
            async for message in reader:
                yield message

    @shielded
    async def push(self, session_id: str, frame: FrameAppend, handle: str | None = None) -> None:
        await self._stream(session_id, handle).push(frame)

    @shielded
    async def decide(self, session_id: str, frames: Sequence[FrameAppend]) -> list[FrameOutcome]:
        return await self._stream(session_id).decide(frames)

    @shielded
    async def text(self, session_id: str, text: str, handle: str | None = None) -> None:
        await self._stream(session_id, handle).text(text)

    async def acknowledge(self, session_id: str, event: int, handle: str) -> None:
        self._stream(session_id, handle).journal.acknowledge(event)

    @shielded
    async def patch(self, session_id: str, changes: StateMap, handle: str | None = None) -> StateMap:
        return await self._stream(session_id, handle).patch(changes)

    # The loop ----------------------------------------------------------------------------------------------

    def _ensure_running(self) -> None:
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._thread.drive(self._publish)), asyncio.create_task(self._sweep())]
            self._tasks[0].add_done_callback(self._abandon)

    def _publish(self, session_id: str, event: EngineEvent) -> None:
        if session_id not in self._streams:  # closed while the step ran
            return
        if isinstance(event, Failed):  # the engine has closed it; its handle leads nowhere
            stream = self._streams.pop(session_id)
            stream.finish(_failure(event), event.reason)
            self._remember(stream)
        else:
            self._streams[session_id].publish(event)

    async def _sweep(self) -> None:
        limit = self._settings.idle_timeout_s
        while True:
            await asyncio.sleep(limit / 4)
            now = time.monotonic()
            self._ended = {sid: each for sid, each in self._ended.items() if now - each.touched < ENDED_FOR_S}
            for stream in list(self._streams.values()):
                if time.monotonic() - stream.touched > limit and not stream.pending:
                    with suppress(UnknownSessionError):  # its client closed it meanwhile
                        await self._end(stream, "idle")

    def _abandon(self, drive: asyncio.Task[None]) -> None:
        """Tell every client that the loop has ended, by a defect or by `stop`."""
        reason = "the server stops" if drive.cancelled() else "the engine failed"
        if not drive.cancelled():
            log.error(reason, exc_info=drive.exception())
        for stream in self._streams.values():
            stream.finish(SessionGoingAway(resume=stream.handle, reason=reason), reason)
        self._streams.clear()

    def check_health(self) -> None:
        """Raise the error that ended the engine's loop or the sweep, if one did."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def stop(self) -> None:
        """Say `session.going_away` to every stream and end the loop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.shut_down()

    async def _end(self, stream: Stream, reason: CloseReason) -> SessionClosed:
        if self._streams.pop(stream.session_id, None) is None:
            raise _unknown(stream.session_id)
        frames, stream.last_state = await self._thread.call(self._forget, stream.session_id)
        closed = SessionClosed(session_id=stream.session_id, reason=reason, frames=frames)
        stream.finish(closed, f"session {stream.session_id!r} was closed ({reason})")
        self._remember(stream)
        return closed

    def _remember(self, stream: Stream) -> None:
        """Keep what a session has said for a while, for a client that lost its connection before the end."""
        stream.touched = time.monotonic()
        self._ended[stream.session_id] = stream

    def _forget(self, session_id: str) -> tuple[int, StateMap]:
        """Close a session on the engine's thread, in one call, so that its id can be opened again after it."""
        frames, state = self._engine.counters(session_id).frames, state_map(self._engine.state(session_id))
        self._engine.close(session_id)
        return frames, state

    async def _created(self, stream: Stream) -> SessionCreated:
        card = await self.model()
        return SessionCreated(
            session_id=stream.session_id,
            resume=stream.handle,
            fps=card.fps,
            fingerprint=card.fingerprint,
            tokens_per_frame=card.tokens_per_frame,
            next_seq=stream.next_seq,
            last_event=stream.journal.last_event,
            capabilities=CAPABILITIES,
            state=await self._state(stream),
        )

    async def _state(self, stream: Stream) -> StateMap:
        if stream.session_id not in self._streams:
            return stream.last_state
        return state_map(await self._thread.call(self._engine.state, stream.session_id))

    def _stream(self, session_id: str, handle: str | None = None) -> Stream:
        """The session's stream; `handle` is that of the connection that speaks, None over HTTP."""
        stream = self._streams.get(session_id)
        if stream is None:
            raise _unknown(session_id)
        if handle is not None:
            if handle != stream.handle:
                raise session_error("taken_over", f"stream: session {session_id!r} goes on in another one")
            stream.spoke()
        stream.touched = time.monotonic()
        return stream


def _failure(event: Failed) -> ErrorMessage:
    return ErrorMessage(code="session_failed", message=f"the session met a defect of the server: {event.reason}")


def _unknown(session_id: str) -> UnknownSessionError:
    return UnknownSessionError(f"session_id: no session {session_id!r} is open here", field="session_id")
