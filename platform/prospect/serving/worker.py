"""The engine's process: the sessions that gateways have opened in it. Knows no Ray and no client."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np

from prospect.dialogue.state import TaskState
from prospect.errors import SessionError, UnknownSessionError, session_error, unknown_session
from prospect.monitoring import Readings
from prospect.protocol.messages import TranscriptEntry
from prospect.serving.autoscaling import SESSIONS, STEP_S
from prospect.serving.engine_thread import EngineThread
from prospect.serving.engine_view import card_of, note_engine
from prospect.serving.events import Patched, TextRefused, pack_event
from prospect.serving.hosted import Hosted, News
from prospect.serving.logs import about
from prospect.serving.pace import Pace
from prospect.serving.replay import Json
from prospect.serving.session_ids import name_of
from prospect.serving.wire import Connection, listen
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.types import Decision, Failed, Refreshed, SessionSpec

log = logging.getLogger(__name__)

REBASED_AFTER = 256
"""Frames by which a context's start may move before the gateway gets a new log."""
SWEPT_EVERY_S = 1.0


class EngineWorker:
    """Answers gateways over the wire; steps the engine while it has work.

    Args:
        engine: decides the frames.
        version: of the served model.
        accepts_images: whether pictures can be encoded.
        move_seconds: for which a session outlives its gateway.

    Attributes:
        readings: for operators.
    """

    def __init__(
        self, engine: StreamingEngine, version: str = "", accepts_images: bool = False, move_seconds: float = 60.0
    ) -> None:
        self._engine, self._move_seconds = engine, move_seconds
        self._card = card_of(engine, version, accepts_images)
        self.readings = Readings()
        self._pace = Pace(self.readings)
        self._told: dict[Connection, tuple[str, Json]] = {}
        """What the gateways say of themselves, for each other: by connection, name and numbers."""
        self._thread = EngineThread()
        self._texts = ThreadPoolExecutor(1, "texts")
        """Makes what is long out of texts while the engine's thread goes on."""
        self._sessions: dict[str, Hosted] = {}
        self._unbased: set[str] = set()
        """Sessions whose first context is being fed; changed on the engine's thread."""
        self._tasks: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._taking: set[asyncio.Task[None]] = set()

    async def start(self, host: str, secret: str) -> str:
        """Begin to listen on a node's address; returns "host:port"."""
        self._server, address = await listen(host, secret, lambda: self)
        self._tasks = [
            asyncio.create_task(self._thread.drive(self._step, self._publish)),
            asyncio.create_task(self._sweep()),
        ]
        self._tasks[0].add_done_callback(self._abandon)
        return address

    def check_health(self) -> None:
        """Raise the error that ended the engine's loop or the sweep, if one did."""
        for task in self._tasks:
            if task.done():
                task.result()

    def load(self) -> dict[str, float]:
        """Return what `SessionPolicy` decides by; from any thread."""
        return {SESSIONS: float(len(self._sessions)), STEP_S: self._pace.mean_step_s()}

    async def measure(self) -> None:
        """Note in the readings how the engine is now."""
        stats = await self._thread.call(self._engine.stats)
        note_engine(self.readings, stats, sum(len(hosted.seqs) for hosted in self._sessions.values()))

    async def stop(self) -> None:
        """End; gateways move the sessions elsewhere."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.shut_down()
        self._texts.shutdown(wait=False)

    # The wire ----------------------------------------------------------------------------------------------

    async def answer(self, connection: Connection, operation: str, arguments: list[Any]) -> Any:
        """Answer a gateway; raises what the operation refuses."""
        self._connections.add(connection)
        match operation:
            case "hello":
                return self._card
            case "ping":
                await self._thread.call(lambda: None)
                return self._exchange(connection, *arguments)
            case "open":
                return await self._open(connection, *arguments)
            case "restore":
                return await self._restore(connection, *arguments)
            case "adopt":
                return await self._adopt(connection, *arguments)
        hosted = self._hosted(*arguments[:2])
        session_id, _, *rest = arguments
        match operation:
            case "check_texts":
                return await self._thread.call(self._engine.check_texts, session_id, *rest)
            case "patch":
                state, base = await self._thread.call(self._patch, session_id, *rest)
                self._tell(session_id, hosted, News(events=[Patched(state)], base=base))
                return list(state.labels)
            case "close":
                return await self._close(session_id)
            case "park":
                return await self._thread.call(self._park, session_id)
            case "history":
                return await self._thread.call(self._history, session_id)
            case "record":
                record = await self._thread.call(self._engine.record, session_id)
                return record.model_dump(mode="json", exclude_defaults=True)
        raise session_error("internal", f"operation {operation!r} is unknown")

    def notice(self, connection: Connection, operation: str, arguments: list[Any]) -> None:
        """Take frames: [(session id, epoch, [(seq, texts, float16 bytes, shape)])]."""
        assert operation == "frames"
        known = [each for each in arguments if self._is_current(each[0], each[1])]
        if known:
            task = asyncio.create_task(self._take(known))
            self._taking.add(task)
            task.add_done_callback(self._taking.discard)

    def lost(self, connection: Connection) -> None:
        """Keep the sessions of a gateway that is gone for whoever takes them over."""
        self._connections.discard(connection)
        self._told.pop(connection, None)
        for hosted in self._sessions.values():
            if hosted.owner is connection:
                hosted.owner, hosted.left_at = None, asyncio.get_running_loop().time()

    def _exchange(self, connection: Connection, gateway: str = "", numbers: Json | None = None) -> Json:
        """Take what a gateway says of itself, and return how this engine is and what all gateways say."""
        if numbers is not None:
            self._told[connection] = (gateway, numbers)
        return {"sessions": len(self._sessions), "gateways": dict(self._told.values()), **self._pace.summary()}

    # Sessions ----------------------------------------------------------------------------------------------

    async def _open(self, connection: Connection, session_id: str, epoch: int, spec: Json) -> None:
        state = spec.get("state")
        given = SessionSpec(
            **{
                **spec,
                "steps": tuple(spec["steps"]),
                "state": None if state is None else TaskState.from_labels(state),
            }
        )
        await asyncio.get_running_loop().run_in_executor(self._texts, self._engine.prepare, given)
        await self._make_way(session_id, epoch)
        await self._begin(session_id, Hosted(epoch, connection), lambda: self._engine.open(session_id, given))

    async def _restore(
        self, connection: Connection, session_id: str, epoch: int, log: Json, seqs: list[int], number: int
    ) -> None:
        await self._make_way(session_id, epoch)
        hosted = Hosted(epoch, connection, number, deque(seqs))
        await self._begin(session_id, hosted, lambda: self._engine.import_(log))

    async def _begin(self, session_id: str, hosted: Hosted, work: Callable[[], object]) -> None:
        def begin() -> None:
            work()
            self._unbased.add(session_id)

        self._sessions[session_id] = hosted
        try:
            await self._thread.call(begin)
        except BaseException:
            if self._sessions.get(session_id) is hosted:
                del self._sessions[session_id]
            raise

    async def _adopt(self, connection: Connection, session_id: str, epoch: int, known: int) -> Json:
        """Hand a session to another gateway, with the events after number `known`."""
        hosted = self._hosted(session_id, epoch)

        def export() -> Json | None:
            hosted.epoch = epoch  # here: frames of the earlier owner that lie behind this are not the session's
            if session_id in self._unbased:
                return None
            return self._engine.export(session_id)

        log = await self._thread.call(export)
        hosted.owner = connection
        return {
            "log": log,
            "seqs": list(hosted.seqs),
            "number": hosted.number,
            "recent": [each for each in hosted.recent if each[0] > known],
        }

    async def _make_way(self, session_id: str, epoch: int) -> None:
        """Close an older copy of a session that is to be opened here.

        Raises:
            SessionError: `fenced`: the copy here is newer; `session_exists`: it is of the same epoch.
        """
        hosted = self._sessions.get(session_id)
        if hosted is None:
            return
        self._hosted(session_id, epoch)
        if hosted.epoch == epoch:
            raise session_error("session_exists", f"session {name_of(session_id)!r} is open already", "session_id")
        await self._close(session_id)

    async def _close(self, session_id: str) -> None:
        self._sessions.pop(session_id, None)  # now: an id can be opened again behind this
        await self._thread.call(self._forget, session_id)

    def _hosted(self, session_id: str, epoch: int) -> Hosted:
        hosted = self._sessions.get(session_id)
        if hosted is None:
            raise unknown_session(name_of(session_id))
        if epoch < hosted.epoch:
            raise session_error("fenced", f"session {name_of(session_id)!r} has another owner")
        return hosted

    def _is_current(self, session_id: str, epoch: int) -> bool:
        hosted = self._sessions.get(session_id)
        return hosted is not None and epoch >= hosted.epoch

    # On the engine's thread --------------------------------------------------------------------------------

    def _step(self) -> tuple[dict[str, News], bool]:
        news: dict[str, News] = {}
        for session_id, event in self._pace.step(self._engine):
            news.setdefault(session_id, News()).events.append(event)
        for session_id in [*self._unbased, *news]:
            self._add_log(session_id, news.setdefault(session_id, News()))
        return {sid: each for sid, each in news.items() if each.events or each.base}, self._engine.has_work()

    def _add_log(self, session_id: str, news: News) -> None:
        """Add what the gateway needs to continue the session elsewhere."""
        if any(isinstance(event, Failed) for event in news.events):
            self._unbased.discard(session_id)
            return
        progress = self._engine.progress(session_id)
        if progress is None:
            return
        hosted = self._sessions.get(session_id)
        # A strategy that keeps no frames moves the context's start without a refresh; what gateways keep would grow.
        moved_on = hosted is not None and progress["first_frame"] - hosted.first_frame > REBASED_AFTER
        if session_id in self._unbased or moved_on or any(isinstance(event, Refreshed) for event in news.events):
            self._unbased.discard(session_id)
            news.base = self._base(session_id)
            if hosted is not None:
                hosted.first_frame = progress["first_frame"]
        elif any(isinstance(event, Decision) for event in news.events):
            news.progress = progress

    def _base(self, session_id: str) -> Json:
        """The session's log without what waits, which the gateway has."""
        return {**self._engine.export(session_id), "waiting": None, "texts": []}

    def _push(self, pushed: list[Any]) -> dict[str, News]:
        """Push frames; returns which were taken, and what was refused."""
        news: dict[str, News] = {}
        for session_id, epoch, frames in pushed:
            if not self._is_current(session_id, epoch):
                continue  # closed or handed over meanwhile
            told = news.setdefault(session_id, News())
            try:
                for seq, texts, data, shape in frames:
                    for text in texts:
                        self._push_text(session_id, seq, text, told)
                    self._engine.push_frame(session_id, np.frombuffer(data, np.float16).reshape(shape))
                    told.taken.append(seq)
            except UnknownSessionError:
                continue  # closed meanwhile
            except SessionError as error:  # gateways check what they send
                self._engine.close(session_id)
                self._unbased.discard(session_id)
                told.events.append(Failed(str(error)))
        return news

    def _push_text(self, session_id: str, seq: int, text: str, told: News) -> None:
        try:
            self._engine.push_text(session_id, text)
        except UnknownSessionError:
            raise
        except SessionError as error:  # the text of a dropped frame has joined another one's
            told.events.append(TextRefused(seq, str(error)))

    def _patch(self, session_id: str, changes: dict[str, str]) -> tuple[TaskState, Json | None]:
        state = self._engine.patch_state(session_id, changes)
        return state, None if session_id in self._unbased else self._base(session_id)

    def _forget(self, session_id: str) -> None:
        self._unbased.discard(session_id)
        with suppress(UnknownSessionError):  # it has failed meanwhile
            self._engine.close(session_id)

    def _park(self, session_id: str) -> None:
        if self._engine.settings.parking != "off":
            with suppress(SessionError):  # a frame has come meanwhile
                self._engine.park(session_id)

    def _history(self, session_id: str) -> Json:
        events, forgot = self._engine.history(session_id)
        entries = [TranscriptEntry.of(frame, each).model_dump() for frame, each in sorted(events.items())]
        return {"complete": not forgot, "entries": entries}

    # In the event loop -------------------------------------------------------------------------------------

    def _publish(self, news: dict[str, News]) -> None:
        for session_id, each in news.items():
            hosted = self._sessions.get(session_id)
            if hosted is not None:  # not closed while the step ran
                self._tell(session_id, hosted, each)
                if any(isinstance(event, Failed) for event in each.events):
                    del self._sessions[session_id]

    def _tell(self, session_id: str, hosted: Hosted, news: News) -> None:
        hosted.seqs.extend(news.taken)
        packed = []
        for event in news.events:
            hosted.number += 1
            seq = hosted.seqs.popleft() if isinstance(event, Decision) else None
            packed.append(pack_event(event))
            hosted.recent.append((hosted.number, seq, packed[-1]))
        if hosted.owner is not None and (packed or news.base):
            first = hosted.number - len(packed) + 1
            hosted.owner.notify("news", session_id, hosted.epoch, first, packed, news.base, news.progress)

    async def _take(self, pushed: list[Any]) -> None:
        self._publish(await self._thread.call(self._push, pushed))

    async def _sweep(self) -> None:
        """Close sessions whose gateway is gone and that nobody has taken over in time."""
        while True:
            await asyncio.sleep(SWEPT_EVERY_S)
            now = asyncio.get_running_loop().time()
            for session_id, hosted in list(self._sessions.items()):
                if hosted.owner is None and now - hosted.left_at > self._move_seconds:
                    await self._close(session_id)

    def _abandon(self, drive: asyncio.Task[None]) -> None:
        """Let every gateway know that the loop has ended, by a defect or by `stop`."""
        if not drive.cancelled():
            log.error("the engine failed", exc_info=drive.exception(), extra=about("engine.failed"))
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close()
