"""Brings sessions into engines: new ones, those whose engine is gone, and those whose gateway is gone."""

import asyncio
import logging
import time
from contextlib import suppress

import numpy as np

from prospect.errors import SessionError, session_error
from prospect.protocol.messages import FrameDecision, ModelCard
from prospect.protocol.parsing import parse_server
from prospect.serving.engines import EngineLink, EnginePool
from prospect.serving.recovery import adopt, recall, recover
from prospect.serving.replay import DecidedFrame, Json, SentFrame
from prospect.serving.session_ids import key_of
from prospect.serving.settings import ServingSettings
from prospect.serving.store import FrameRow, SessionRow, Store, StoreUnavailable
from prospect.serving.stream import Stream
from prospect.serving.wire import LostConnectionError
from prospect.serving.writer import StoreWriter

log = logging.getLogger(__name__)

AT_ONCE = 4
"""Sessions that are restored at once: their contexts queue up behind the frames of sessions that live."""
TRIED_EVERY_S = 0.1
_FULL = {"busy", "out_of_pages"}


class Mover:
    """Chooses engines and keeps the store's view of who has a session.

    Args:
        pool: the engines.
        writer: to the store; None: there is none.
        store: likewise.
        address: of this gateway.
        settings: of the application.
    """

    def __init__(
        self, pool: EnginePool, writer: StoreWriter | None, store: Store | None, address: str, settings: ServingSettings
    ) -> None:
        self._pool, self._writer, self._store = pool, writer, store
        self.address, self._settings = address, settings
        self._turns = asyncio.Semaphore(AT_ONCE)

    # New sessions ------------------------------------------------------------------------------------------

    async def register(self, stream: Stream) -> int:
        """Note a new session in the store; returns its epoch.

        Raises:
            SessionError: `session_exists`; `too_many_sessions`.
        """
        if self._writer is None or self._store is None:
            return time.time_ns() // 1_000_000  # later than that of an earlier session of this id
        row = SessionRow(
            session_id=stream.session_id,
            epoch=1,
            owner=self.address,
            engine="",
            status="open",
            opened=stream.update.model_dump(mode="json"),
            tokens=stream.tokens,
            position={},
            state=dict(stream.state),
            mark=None,
            base=None,
            last_event=0,
            touched=time.time(),
            key_id=key_of(stream.session_id),
        )
        return await self._writer.call(self._store.create, row, self._settings.keys.max_sessions)

    async def open(self, stream: Stream) -> None:
        """Open a new session in the engine with the fewest.

        Raises:
            SessionError: the engine's refusal; `busy` or `out_of_pages`: no engine has a place; `unavailable`.
        """
        try:
            await self._place(stream)
        except BaseException:
            if self._writer is not None and self._store is not None:
                await self._writer.call(self._store.erase, stream.session_id)
            raise

    async def _place(self, stream: Stream) -> None:
        refused: SessionError | None = None
        for link in await self._pool.by_load():
            try:
                return await self._try(stream, link)
            except SessionError as error:
                if error.code not in _FULL:
                    raise
                refused = error
            except LostConnectionError:
                continue
        raise refused or session_error("unavailable", "no engine answers; try again")

    async def close(self, stream: Stream) -> None:
        """End a session in its engine and in the store."""
        if stream.link is not None:
            await _close(stream.link, stream.session_id, stream.epoch)
        if self._writer is not None:
            await self._writer.flush(stream)

    async def expire(self) -> None:
        """Erase from the store what its retention time is over for."""
        if self._writer is not None and self._store is not None:
            now = time.time()
            kept = self._settings.retention_hours * 3600
            forsaken = max(kept, 2 * self._settings.limits.idle_timeout_s)  # later than its gateway would close it
            try:
                await self._writer.call(self._store.expire, now - kept, now - forsaken)
            except StoreUnavailable:
                log.warning("the session store is away; nothing expires")

    # Moves -------------------------------------------------------------------------------------------------

    async def move(self, stream: Stream) -> None:
        """Bring a session whose engine is gone into another one.

        Raises:
            SessionError: `fenced`: another gateway has it; `unavailable`: no engine took it in time.
        """
        began, left = time.monotonic(), stream.model
        async with self._turns:
            await self._claim(stream)
            await self._restore(stream, began)
        stream.moved(time.monotonic() - began)
        if left.is_open:  # it is on its way out
            await _close(left, stream.session_id, stream.epoch)

    async def _claim(self, stream: Stream) -> None:
        """Take the next epoch; while the store is away nobody else can."""
        if self._writer is None:
            stream.epoch += 1
            return
        while True:
            try:
                await self._writer.claim(stream, self.address)
                return
            except StoreUnavailable:
                await asyncio.sleep(TRIED_EVERY_S)

    async def _restore(self, stream: Stream, began: float) -> None:
        refused = "no engine answers"
        while time.monotonic() - began < self._settings.move_seconds and not stream.ended:
            try:
                for link in await self._pool.by_load():
                    return await self._try(stream, link)
            except SessionError as error:
                if error.code not in _FULL | {"unavailable"}:
                    raise
                refused = str(error)
            except LostConnectionError as error:
                refused = str(error)
            await asyncio.sleep(TRIED_EVERY_S)
        raise session_error(
            "unavailable", f"no engine took the session within {self._settings.move_seconds:g} seconds: {refused}"
        )

    async def _try(self, stream: Stream, link: EngineLink) -> None:
        """Bring a session into an engine; raises its refusal, or `LostConnectionError`."""
        try:
            stream.enter(link)
            if stream.replay.base is None:  # its first context was never fed
                await link.call("open", stream.session_id, stream.epoch, spec_of(stream))
            else:
                await link.call("restore", stream.session_id, stream.epoch, *stream.log())
        except BaseException:
            stream.leave_engine()
            raise
        link.num_sessions += 1
        stream.take_seat()

    # Sessions of other gateways ----------------------------------------------------------------------------

    async def take_over(self, stream: Stream, row: SessionRow, decided: int | None) -> None:
        """Become the owner of a session: adopt it from its engine, or restore it from the store.

        Args:
            stream: the session, without what happened in it.
            row: what the store knows of it.
            decided: seq of the last frame whose decision its client has, as far as known.

        Raises:
            SessionError: `fenced`: another gateway was faster; `unavailable`.
        """
        assert self._writer is not None
        assert self._store is not None
        began = time.monotonic()
        stream.epoch = await self._writer.call(self._store.claim, row.session_id, row.epoch, self.address)
        said = await self._writer.call(self._store.events, row.session_id)
        recall(stream, row)
        messages = [(each.source, parse_server(each.payload)) for each in said]
        if (adopted := await self._adopt(stream, row)) is not None:
            adopt(stream, row, adopted, messages)
            stream.take_seat()
            self._pool.check(stream.model)
            return
        card = (await self._pool.any()).card
        frames = await self._writer.call(self._store.frames, row.session_id)
        recover(stream, row, [_decided(each, card) for each in frames], messages, decided)
        await self._restore(stream, began)
        stream.moved(time.monotonic() - began)

    async def _adopt(self, stream: Stream, row: SessionRow) -> Json | None:
        """Ask the engine that has a session for it; None if that engine is dead, or has given the session up."""
        if not row.engine:
            return None
        try:
            link = await self._pool.reach(row.engine)
            stream.await_adoption(link)
            return await link.call("adopt", row.session_id, stream.epoch, 0)
        except (LostConnectionError, SessionError):
            stream.leave_engine()
            return None


async def _close(link: EngineLink, session_id: str, epoch: int) -> None:
    with suppress(LostConnectionError, SessionError):  # it is gone, or has closed it
        await link.call("close", session_id, epoch)


def spec_of(stream: Stream) -> Json:
    """What an engine opens a session from, as JSON: the client's words, and the state that it may have set since."""
    update = stream.update
    return {
        "goal": update.goal,
        "steps": list(update.steps),
        "knowledge": update.knowledge,
        "dataset": update.dataset,
        "strategy": update.context_strategy,
        "speak_threshold": update.thresholds.speak,
        "update_threshold": update.thresholds.update,
        "state": list(stream.state.values()) if any(each != "not_started" for each in stream.state.values()) else None,
    }


def _decided(row: FrameRow, card: ModelCard) -> DecidedFrame:
    features = None
    if row.embedding is not None:
        features = np.frombuffer(row.embedding, np.float16).reshape(card.tokens_per_frame, card.dim)
    sent = SentFrame(row.seq, features, tuple(row.events["user"]))
    told = None if row.decision is None else FrameDecision.model_validate_json(row.decision)
    return DecidedFrame(row.frame, sent, row.events, row.number, told)
