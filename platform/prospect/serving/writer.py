"""Writes what sessions said to the store: one transaction at a time, for all sessions of a gateway."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from prospect.serving.logs import about
from prospect.serving.replay import DecidedFrame
from prospect.serving.settings import Durability
from prospect.serving.store import FrameRow, SessionChange, Store, StoreUnavailable
from prospect.serving.stream import Stream
from prospect.serving.unwritten import Unwritten

log = logging.getLogger(__name__)
T = TypeVar("T")

GAP_S = 0.01
"""Seconds from one transaction to the next: what sessions say meanwhile is written in one."""
LAZY_S = 1.0
"""Seconds after which the position of a session that says nothing is written."""
RETRIED_EVERY_S = 0.5
PROBED_EVERY_S = 5.0
"""Seconds without a write after which the store is asked whether it takes one: a gateway without sessions tells its
health too."""


class StoreWriter:
    """Belongs to one event loop; the store runs on a thread of its own.

    Args:
        store: where to.
        durability: what of it.
        fenced: told of a stream that another gateway owns by now.

    Attributes:
        degraded: whether the store is away, or lacks what was said while it was: messages are then sent before they
            are written, and written once it is back.
    """

    def __init__(self, store: Store, durability: Durability, fenced: Callable[[Stream], None]) -> None:
        self._store, self._durability, self._fenced = store, durability, fenced
        self._thread = ThreadPoolExecutor(1, "store")
        self._urgent: dict[str, Stream] = {}
        self._lazy: dict[str, Stream] = {}
        self._wake = asyncio.Event()
        self._written = asyncio.Condition()
        self._writing: dict[str, Stream] = {}
        self._claimed: set[str] = set()
        """Ids of streams whose next epoch is being asked for."""
        self._away = False
        self._due_since: float | None = None
        self._written_at = time.monotonic()
        self._behind: set[str] = set()
        """Ids of the streams that have said what the store lacks since it was away."""
        self._task = asyncio.create_task(self._run())

    @property
    def degraded(self) -> bool:
        return self._away or bool(self._behind)

    @property
    def lag(self) -> float:
        """Seconds for which the oldest change that is to be written at once has not been."""
        return 0.0 if self._due_since is None else time.monotonic() - self._due_since

    def note(self, stream: Stream, urgent: bool) -> None:
        """Have a stream's changes written, soon or at once."""
        if self._away:
            stream.journal.release(stream.journal.end)
        if urgent or self._durability == "frames":
            self._urgent[stream.session_id] = stream
            self._due_since = self._due_since or time.monotonic()
            self._wake.set()
        else:
            self._lazy[stream.session_id] = stream

    async def flush(self, stream: Stream) -> None:
        """Return once everything that the stream has said so far is written, or the store is away."""
        self.note(stream, urgent=True)
        async with self._written:
            await self._written.wait_for(lambda: self._away or not self._is_due(stream))

    async def claim(self, stream: Stream, owner: str) -> None:
        """Take the next epoch of a stream, behind all that it said under this one; raises as `Store.claim`.

        Nothing of it is written meanwhile: a write that overtook the answer would be refused as an older owner's.
        """
        await self.flush(stream)
        self._claimed.add(stream.session_id)
        try:
            stream.epoch = await self.call(self._store.claim, stream.session_id, stream.epoch, owner)
        finally:
            self._claimed.discard(stream.session_id)
            self._wake.set()

    async def call(self, method: Callable[..., T], *arguments: Any) -> T:
        """Run a method of the store on its thread; raises `StoreUnavailable`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, method, *arguments)

    async def stop(self, streams: Iterable[Stream]) -> None:
        """Write sessions whole, with their frames, for the gateways that take them over, and end.

        A planned end has the time for it: their engines may be replaced at the same moment.
        """
        self._durability = "frames"
        for stream in streams:
            stream.unwritten.frames = [*stream.replay.earlier, *stream.replay.frames]
            self._urgent[stream.session_id] = stream
        self._urgent |= self._lazy
        for stream in list(self._urgent.values()):
            await self.flush(stream)
        self._task.cancel()
        self._thread.shutdown(wait=False)

    def _is_due(self, stream: Stream) -> bool:
        return any(stream in due.values() for due in (self._urgent, self._writing))

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(LAZY_S):
                    await self._wake.wait()
            except TimeoutError:
                self._urgent |= self._lazy
                self._lazy.clear()
            self._wake.clear()
            due = {sid: stream for sid, stream in self._urgent.items() if sid not in self._claimed}
            if due:
                self._writing = due
                self._urgent = {sid: stream for sid, stream in self._urgent.items() if sid not in due}
                for session_id in self._writing:
                    self._lazy.pop(session_id, None)
                began = time.monotonic()
                await self._write(list(self._writing.values()))
                self._writing, self._due_since = {}, began if self._urgent else None
                async with self._written:
                    self._written.notify_all()
                await asyncio.sleep(began + GAP_S - time.monotonic())
            elif self._away or time.monotonic() - self._written_at > PROBED_EVERY_S:
                await self._probe()

    async def _probe(self) -> None:
        """Note how the store is that nothing has to be written to."""
        try:
            await self.call(self._store.probe)
        except StoreUnavailable as error:
            await self._speak_on([], error)
        except Exception:
            log.exception("the session store could not be asked whether it takes a write")
        else:
            self._note_written([])

    async def _write(self, streams: list[Stream]) -> None:
        changes = [take_change(stream, self._durability) for stream in streams]
        ends = [stream.journal.end for stream in streams]
        while True:
            try:
                fenced = await self.call(self._store.write, changes)
                break
            except StoreUnavailable as error:
                await self._speak_on(streams, error)
                await asyncio.sleep(RETRIED_EVERY_S)
            except Exception:
                log.exception("writing %d sessions", len(streams))
                await asyncio.sleep(RETRIED_EVERY_S)
        self._note_written(streams)
        for stream, end in zip(streams, ends, strict=True):
            if stream.session_id in fenced:
                self._fenced(stream)
            else:
                stream.journal.release(end)

    def _note_written(self, streams: list[Stream]) -> None:
        """Note that the store is there, and has all of some streams."""
        self._written_at = time.monotonic()
        if not self._away:
            self._behind -= {stream.session_id for stream in streams}
            return
        log.warning("the session store is back", extra=about("store.back"))
        self._away = False
        self._urgent |= self._lazy
        self._lazy.clear()
        self._behind = set(self._urgent)
        self._wake.set()

    async def _speak_on(self, streams: list[Stream], error: Exception) -> None:
        """Let clients hear what is not written: no other gateway can own their sessions meanwhile."""
        if not self._away:
            log.error("%s; sessions go on, and are written when it is back", error, extra=about("store.away"))
            self._away = True
        for stream in [*streams, *self._urgent.values(), *self._lazy.values()]:
            stream.journal.release(stream.journal.end)
        async with self._written:
            self._written.notify_all()


def take_change(stream: Stream, durability: Durability) -> SessionChange:
    """Take from a stream what is to be written since the last time."""
    unwritten, stream.unwritten = stream.unwritten, Unwritten()
    base = stream.replay.base
    first = base["counters"]["frames"] if base else 0
    if durability == "frames":  # whoever reads the session may lack the decisions of the last frames
        first = max(first - stream.journal.max_decisions, 0)
    kept = [frame for frame in unwritten.frames if frame.frame >= first and (durability == "frames" or frame.acts)]
    columns: dict[str, Any] = {
        "position": {
            "decided": stream.decided,
            "slot": stream.decided_slot,
            "number": stream.number,
            "settled": stream.settled_number,
            **stream.inbox.position(),
        },
        "engine": stream.link.address if stream.link else "",
        "tokens": stream.tokens,
        "state": stream.state,
        "mark": stream.replay.progress,
        "last_event": stream.journal.last_event,
        "touched": time.time(),
        "status": "closed" if stream.closed else "open",
    }
    return SessionChange(
        session_id=stream.session_id,
        epoch=stream.epoch,
        columns=columns | ({"base": base} if unwritten.based else {}),
        events=unwritten.events,
        frames=[_row(frame, durability) for frame in kept],
        frames_from=first if unwritten.based else None,
    )


def _row(frame: DecidedFrame, durability: Durability) -> FrameRow:
    row = FrameRow(frame.frame, frame.sent.seq, frame.events, None)
    if durability == "frames":
        data = None if frame.sent.embedding is None else frame.sent.embedding.tobytes()
        decision = None if frame.told is None else frame.told.model_dump_json(exclude_none=True)
        return replace(row, embedding=data, number=frame.number, decision=decision)
    return row
