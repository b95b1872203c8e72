"""The live sessions of one gateway, without Ray: who may open, resume and close them, and for how long they live."""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from prospect.errors import SessionError, UnknownSessionError, session_error, unknown_session
from prospect.messages import first_line
from prospect.protocol.messages import (
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
    TextAppend,
    Transcript,
)
from prospect.serving.access.limits import check_num_sessions
from prospect.serving.encoders import Encoder, NoEncoder
from prospect.serving.ended import EndedStreams
from prospect.serving.engines import Directory, EngineLink, EnginePool
from prospect.serving.journal import Journal
from prospect.serving.lease import Lease
from prospect.serving.logs import about
from prospect.serving.monitor import Monitor
from prospect.serving.mover import Mover
from prospect.serving.overview import Overview
from prospect.serving.ownership import Ownership
from prospect.serving.peers import GatewayPeer, Respond
from prospect.serving.session_ids import name_of, scoped
from prospect.serving.settings import ServingSettings
from prospect.serving.shielded import shielded
from prospect.serving.store import Store
from prospect.serving.stream import Stream
from prospect.serving.sweeper import CloseReason, Sweeper
from prospect.serving.views import created_of, record_of, transcript_of, view_of
from prospect.serving.watching import Watcher
from prospect.serving.wire import listen
from prospect.serving.writer import StoreWriter

log = logging.getLogger(__name__)


_push_whole = shielded(Stream.push)


class SessionHost:
    """The sessions that this gateway owns; their contexts and frames are in engines, which may die.

    Its tasks start with the first call, in that call's event loop.

    Args:
        engines: where sessions are decided.
        secret: that gateways, engines and encoders know of each other.
        encoder: of pictures; None: clients send embeddings.
        settings: of the application and its sessions.
        store: what survives this process; None: nothing does.
        address: of this node, for other gateways.
    """

    def __init__(
        self,
        engines: Directory,
        secret: str,
        encoder: Encoder | None = None,
        settings: ServingSettings | None = None,
        store: Store | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        self._engines, self.secret, self._encoder = engines, secret, encoder
        self._settings = settings or ServingSettings()
        self._limits, self._store, self._node = self._settings.limits, store, address
        self.monitor = Monitor()
        self.readings = self.monitor.readings
        self._streams: dict[str, Stream] = {}
        self._ended = EndedStreams()
        self._opening: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._begun: asyncio.Task[None] | None = None
        self._writer: StoreWriter | None = None
        self._ownership: Ownership | None = None
        self.lease: Lease | None = None
        self._server: asyncio.Server | None = None
        self.relays: set[Watcher] = set()
        """Listeners to sessions of other gateways."""
        self.respond: Respond
        """Answers requests that other gateways pass on; set by the API."""
        self.address = ""
        """Where other gateways reach this one."""

    def owns(self, session_id: str) -> bool:
        """Whether a session is this gateway's, or is being closed here."""
        return session_id in self._streams or self._ended.is_closing(session_id)

    @property
    def open_sessions(self) -> list[str]:
        return list(self._streams)

    # The server --------------------------------------------------------------------------------------------

    async def overview(self) -> Overview:
        """Return what knows how the application is, once this gateway works; raises as `check_health`."""
        await self._ready()
        self.check_health()
        return self._overview

    async def measure(self) -> None:
        """Note in the readings how this gateway is now."""
        (await self.overview()).measure()

    async def model(self) -> ModelCard:
        await self._ready()
        return (await self._pool.any()).card

    def check_health(self) -> None:
        """Raise the error that ended the sweep, if one did."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def stop(self) -> None:
        """Say `session.going_away` to every stream; what the store has can be resumed elsewhere."""
        reason = "the server stops"
        streams = list(self._streams.values())
        self._streams.clear()
        for relay in list(self.relays):
            relay.close()
        for stream in streams:
            stream.finish(SessionGoingAway(resume=stream.handle, reason=reason), reason)
        if self._begun is not None:
            await self._ready()
            for task in self._tasks:
                task.cancel()
            if self._writer is not None and self.lease is not None:
                self.lease.stop()
                await self._writer.stop(streams)
            self._pool.stop()
        if self._server is not None:
            self._server.close()

    async def _ready(self) -> None:
        if self._begun is None:
            self._begun = asyncio.create_task(self._begin())
        await asyncio.shield(self._begun)

    async def _begin(self) -> None:
        if self._store is not None:
            self._server, self.address = await listen(self._node, self.secret, lambda: GatewayPeer(self))
            self._writer = StoreWriter(self._store, self._settings.durability, self._give_up)
        self._pool = EnginePool(self._engines, self.secret, self, self.monitor)
        self._overview = Overview(self._pool, self._writer, self._streams, self._encoder, self.monitor)
        self._mover = Mover(self._pool, self._writer, self._store, self.address, self._settings)
        if self._store is not None and self._writer is not None:
            self._ownership = Ownership(
                self._streams, self._new_stream, self._give_up, self._mover, self._writer, self._store, self.secret
            )
            self.lease = Lease(self._ownership.check)
        self._sweeper = Sweeper(self._streams, self._limits, self._end, self._ended.forget_old, self._mover.expire)
        self._tasks = [asyncio.create_task(self._sweeper.run())]

    # Sessions ----------------------------------------------------------------------------------------------

    @shielded
    async def create(self, update: SessionUpdate, stream: bool = False, key_id: str | None = None) -> SessionCreated:
        """Open a session of a key. With `stream`, its messages are kept for `events` from the first one on."""
        await self._ready()
        name = update.session_id or secrets.token_hex(16)
        session_id = scoped(key_id, name)
        if session_id in self._streams or session_id in self._opening:
            raise session_error("session_exists", f"session {name!r} is open already", "session_id")
        check_num_sessions((*self._streams, *self._opening), key_id, self._settings.keys.max_sessions)
        self._opening.add(session_id)
        try:
            opened = self._new_stream(session_id, update, 0)
            opened.epoch = await self._mover.register(opened)
            await self._mover.open(opened)
        finally:
            self._opening.discard(session_id)
        if stream:
            opened.reader = opened.journal.read()
        self._streams[session_id] = opened
        self._ended.forget(session_id)
        self._note(opened, urgent=True)
        self.monitor.opened(session_id, opened.epoch)
        return created_of(opened)

    @shielded
    async def resume(self, update: SessionUpdate, key_id: str | None = None) -> SessionCreated:
        """Continue a key's session on a new stream; the old one ends. `Journal.read` says what is sent again."""
        await self._ready()
        name, _, token = (update.resume or "").partition(":")
        session_id = scoped(key_id, name)
        stream = self.find(session_id)
        if stream is None:
            stream = await self._ownership.fetch(session_id, token, update.decided) if self._ownership else None
        if stream is None or not stream.knows(token):
            raise UnknownSessionError("resume: no session with this handle is open here", field="resume")
        stream.touched = time.monotonic()
        stream.take_over(update, token)
        self.monitor.opened(session_id, stream.epoch, resumed=True)
        if self._writer is not None and not stream.closed:
            await self._writer.flush(stream)  # the new handle is good at any gateway once its client has it
        return created_of(stream)

    @shielded
    async def close(self, session_id: str, handle: str | None = None) -> SessionClosed:
        """Close the session once the frames taken so far are decided."""
        stream = await self._stream(session_id, handle)
        async with stream.lock:
            await asyncio.gather(
                *(stream.outcomes.of(each.sent.seq) for each in stream.inbox.pending), return_exceptions=True
            )
            closed = await self._end(stream, "client")
        if handle is None:  # DELETE, and not the client of a stream that ends
            self._ended.forget(session_id)
            if self._writer is not None and self._store is not None:
                await self._writer.call(self._store.erase, session_id)
        return closed

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

    def find(self, session_id: str) -> Stream | None:
        """A session of this gateway, also one that has ended not long ago."""
        return self._streams.get(session_id) or self._ended.get(session_id)

    async def view(self, session_id: str) -> SessionView:
        return view_of(await self._stream(session_id))

    async def transcript(self, session_id: str) -> Transcript:
        return await transcript_of(await self._stream(session_id))

    async def record(self, session_id: str) -> dict[str, Any]:
        """The session so far as a canonical record; raises as `StreamingEngine.record`."""
        return await record_of(await self._stream(session_id))

    async def events(self, session_id: str, handle: str) -> AsyncIterator[ServerMessage]:
        """Yield the messages of a session on a stream until it is closed or another stream takes it over."""
        stream = self.find(session_id)
        reader = stream.reader if stream is not None and stream.handle == handle else None
        if stream is not None and reader is not None:
            async for message in reader:
                if self.lease is not None:
                    await self.lease.hold()
                if stream.given_up:
                    return  # it went to another gateway while this process slept
                yield message

    async def push(self, session_id: str, frame: FrameAppend, handle: str | None = None) -> None:
        stream = await self._stream(session_id, handle)
        push = Stream.push if frame.image is None else _push_whole  # pictures are waited for
        await push(stream, frame, self._encoder or NoEncoder(stream.model.card.fingerprint))

    async def drop(self, session_id: str, frame: FrameAppend, handle: str) -> None:
        """Answer a frame that nobody looked at: its client sends more than can be read."""
        (await self._stream(session_id, handle)).drop(frame)

    @shielded
    async def decide(self, session_id: str, frames: Sequence[FrameAppend]) -> list[FrameOutcome]:
        stream = await self._stream(session_id)
        outcomes = await stream.decide(frames, self._encoder or NoEncoder(stream.model.card.fingerprint))
        if self._writer is not None and any(each.delta or each.utterance is not None for each in outcomes):
            await self._writer.flush(stream)
        return outcomes

    @shielded
    async def text(self, session_id: str, message: TextAppend, handle: str | None = None) -> None:
        stream = await self._stream(session_id, handle)
        await stream.text(message.text, message.id or "")
        if handle is None and self._writer is not None:
            await self._writer.flush(stream)

    async def acknowledge(self, session_id: str, event: int, handle: str) -> None:
        (await self._stream(session_id, handle)).journal.acknowledge(event)

    @shielded
    async def patch(self, session_id: str, changes: StateMap, handle: str | None = None) -> StateMap:
        stream = await self._stream(session_id, handle)
        state = await stream.patch(changes)
        if self._writer is not None:
            await self._writer.flush(stream)
        return state

    # Other gateways ----------------------------------------------------------------------------------------

    async def owner_of(self, session_id: str) -> str | None:
        """The address of the gateway that owns a session; None: this one, or nobody (`Ownership.owner_of`)."""
        await self._ready()
        if self._ownership is None or self._ended.is_closing(session_id):
            return None
        return await self._ownership.owner_of(session_id)

    async def release(self, session_id: str) -> None:
        """Let another gateway have a session; one that is being closed is closed first."""
        await self._ended.closed(session_id)
        if self._ownership is not None:
            await self._ownership.release(session_id)

    def _give_up(self, stream: Stream) -> None:
        """Leave a session to the gateway that owns it by now; one that is over is erased, and heard to its end."""
        if stream.closed:
            return
        if self._streams.get(stream.session_id) is stream:
            del self._streams[stream.session_id]
        stream.finish(None, f"session {stream.name!r} goes on in another gateway")

    # Engines -----------------------------------------------------------------------------------------------

    def take_news(self, link: EngineLink, session_id: str, epoch: int, *news: Any) -> None:
        """Take what an engine says of a session: (first number, events, base, progress)."""
        stream = self._streams.get(session_id)
        if stream is None or stream.epoch != epoch or stream.link is not link:
            return
        first, events, base, progress = news
        if events and events[-1][0] == "failed":  # the engine has closed it; its handle leads nowhere
            self._fail(stream, events[-1][1]["reason"])
        else:
            stream.take_news(first, events, base, progress)

    def engine_lost(self, link: EngineLink) -> None:
        """Move the sessions of an engine that is gone or on its way out."""
        for stream in self._streams.values():
            if stream.link is link and stream.is_seated:
                stream.leave_engine()
                task = asyncio.create_task(self._move(stream))
                self._tasks.append(task)
                task.add_done_callback(self._tasks.remove)

    async def _move(self, stream: Stream) -> None:
        try:
            await self._mover.move(stream)
        except SessionError as error:
            if error.code == "fenced":
                self._give_up(stream)
            elif self._store is None:
                self._fail(stream, str(error))
            elif self._streams.pop(stream.session_id, None) is not None:  # it can be resumed from the store
                stream.finish(SessionGoingAway(resume=stream.handle, reason=str(error)), str(error))
        except Exception as error:  # a defect, of which the client must hear
            log.exception("moving session %s", stream.session_id, extra=about("defect", session=stream.session_id))
            self._fail(stream, first_line(error))

    def _fail(self, stream: Stream, reason: str) -> None:
        if self._streams.pop(stream.session_id, None) is None:
            return
        self.monitor.failed(stream.session_id, stream.epoch, reason)
        message, stream.closed = f"the session met a defect of the server: {reason}", True
        stream.finish(ErrorMessage(code="session_failed", message=message), reason)
        self._ended.remember(stream)

    async def _end(self, stream: Stream, reason: CloseReason) -> SessionClosed:
        if self._streams.pop(stream.session_id, None) is None:
            raise unknown_session(stream.name)
        frames, stream.closed = stream.replay.counters.get("frames", 0), True
        closed = SessionClosed(session_id=stream.name, reason=reason, frames=frames)
        stream.finish(closed, f"session {stream.name!r} was closed ({reason})")
        with self._ended.closing(stream):
            await self._mover.close(stream)
        return closed

    # Helpers -----------------------------------------------------------------------------------------------

    def _new_stream(self, session_id: str, update: SessionUpdate, epoch: int) -> Stream:
        journal = Journal.of(self._limits, self._settings.durability if self._writer is not None else "none")
        return Stream(session_id, update, epoch, journal, self._limits, self._note, self.monitor)

    def _note(self, stream: Stream, urgent: bool) -> None:
        if self._writer is not None:
            self._writer.note(stream, urgent)

    async def _stream(self, session_id: str, handle: str | None = None) -> Stream:
        """The session's stream; `handle` is that of the connection that speaks, None over HTTP."""
        stream = self._streams.get(session_id)
        if stream is None:
            raise unknown_session(name_of(session_id))
        if handle is not None:
            if handle != stream.handle:
                raise session_error("taken_over", f"stream: session {stream.name!r} goes on in another one")
            stream.spoke()
        stream.touched = time.monotonic()
        return stream
