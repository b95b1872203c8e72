"""The streaming engine: opens sessions, takes their frames, and decides them in one forward pass a step.

A plain Python object: tests, the evaluator and the Serve deployment drive the same one.
"""

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from prospect.dialogue.prompt import ContextSettings, StrategyName
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.state import TaskState
from prospect.dialogue.timeline import FrameEvents
from prospect.errors import OutOfPagesError, SessionError, UnknownSessionError, session_error
from prospect.hashing import derived_seed
from prospect.model.checkpoint import LoadedModel
from prospect.streaming.features import foreign_encoder
from prospect.streaming.kv_cache.block_table import BlockTable
from prospect.streaming.kv_cache.parking import ParkingLot, pack, put_back
from prospect.streaming.kv_cache.placement import Activity, CachePlacement
from prospect.streaming.kv_cache.sizing import make_pool
from prospect.streaming.runner.executor import Executor
from prospect.streaming.runner.select import make_trunk, scheduler_of
from prospect.streaming.session.decisions import decision_policy
from prospect.streaming.session.log import Segment, to_dialogue
from prospect.streaming.session.log_check import checked_cache, checked_log, model_hash, weights_hash
from prospect.streaming.session.sampling import RandomState
from prospect.streaming.session.session import Session
from prospect.streaming.session.shared import Counters, SessionParts
from prospect.streaming.session.strategies import ContextPlan, session_context
from prospect.streaming.settings import DstDecoder, StreamingSettings
from prospect.streaming.stats import ClosedSessionTotals, EngineStats
from prospect.streaming.types import EngineEvent, Failed, SessionSpec

log = logging.getLogger(__name__)


class StreamingEngine:
    """Many live sessions of one model.

    Args:
        loaded: the model.
        context: how contexts are built.
        settings: of the engine.
        equivalent_to: fingerprints of embeddings that are accepted beside the model's own.

    Attributes:
        accepted_fingerprints: of embeddings.
        attention: name of the class that computes attention, such as `VarlenAttention`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        context: ContextSettings,
        settings: StreamingSettings,
        equivalent_to: Collection[str] = (),
    ) -> None:
        self.loaded = loaded
        self.accepted_fingerprints = frozenset({loaded.fingerprint, *equivalent_to})
        self.settings = settings
        self.context = context
        self._model = loaded.model
        self._parts = SessionParts(
            loaded.model,
            loaded.vocabulary,
            context,
            settings.state_policy,
            settings.catch_up_frames,
            settings.max_waiting_frames,
            settings.history_events,
        )
        self._parts_by_strategy: dict[StrategyName, SessionParts] = {}
        self._pool = make_pool(loaded.model, settings, context.max_seq_len)
        lot = ParkingLot(settings.parking_folder if settings.parking == "disk" else None)
        full = self._pool.pages_for(context.max_seq_len)
        self._placement = CachePlacement(self._pool, self._pool.num_pages // full, lot, self._activity)
        self._sessions: dict[str, Session] = {}
        self._closed = ClosedSessionTotals()
        self._step_seconds: deque[float] = deque(maxlen=1000)
        trunk = make_trunk(loaded.model, self._pool, settings, context.max_seq_len)
        self.attention = trunk.attention
        self._executor = Executor(
            loaded.model,
            trunk,
            scheduler_of(settings, self._pool.device.type),
            settings.deterministic,
            self._fail,
        )

    # Sessions ----------------------------------------------------------------------------------------------

    def open(self, session_id: str, spec: SessionSpec) -> None:
        """Open a session; the next steps feed its context.

        Raises:
            SessionError: the id is in use, all sessions are (`busy`), or the context leaves no room for a frame.
            UntrainedHeadError: a recipe is given, and the heads that track it are untrained.
        """
        self._admit(session_id, spec, self.settings.dst_decoder)
        seed = derived_seed(self.settings.sampling.seed, session_id) if spec.seed is None else spec.seed
        policy = decision_policy(self.settings, self._model.config.thresholds, spec)
        session = Session(self._parts_of(spec), spec, self._new_table(), policy, RandomState(seed))
        self._add(session_id, session)
        self._executor.start(session_id, session.start(), session.cache)

    def prepare(self, spec: SessionSpec) -> None:
        """Make the text of a session's first context ahead of `open`; on any thread, since a long recipe takes time.

        Raises:
            DataError: goal and knowledge leave no room for the recipe.
        """
        state = TaskState.initial(len(spec.steps)) if spec.state is None else spec.state
        if len(state) == len(spec.steps):  # else `open` says so
            session_context(self._parts_of(spec).builder, spec, ContextPlan(state))

    def push_frame(self, session_id: str, embedding: np.ndarray, fingerprint: str | None = None) -> int:
        """Queue a frame's features [I, D]; return its index in the stream.

        Raises:
            UnknownSessionError: the session is not open here.
            FingerprintError: the features come from another encoder.
            SessionError: `wrong_shape`, values that are not finite, or `overloaded`.
        """
        session = self._session(session_id)
        if fingerprint is not None and fingerprint not in self.accepted_fingerprints:
            raise foreign_encoder(fingerprint, self.loaded.fingerprint)
        return session.push_frame(embedding)

    def push_text(self, session_id: str, text: str) -> None:
        """Add a text of the user to the next frame that is pushed."""
        self._session(session_id).push_text(text)

    def check_texts(self, session_id: str, texts: Sequence[str]) -> None:
        """Raise SessionError if the session cannot take these texts before one frame."""
        self._session(session_id).check_texts(texts)

    def patch_state(self, session_id: str, changes: Mapping[str, str]) -> TaskState:
        """Set steps by id, such as {"S2": "completed"}; return the new state.

        Raises:
            SessionError: a step or a state is unknown; nothing is changed then.
        """
        session = self._session(session_id)
        session.patch_state(changes)
        return session.state

    def state(self, session_id: str) -> TaskState:
        return self._session(session_id).state

    def counters(self, session_id: str) -> Counters:
        return self._session(session_id).counters

    def waiting(self, session_id: str) -> int:
        """Return the number of frames pushed and not decided."""
        session = self._session(session_id)
        return session.num_pushed - session.counters.frames

    def close(self, session_id: str) -> None:
        """Forget the session and free its pages."""
        self._closed.add(self._session(session_id).counters)
        self._executor.drop(session_id)
        self._placement.remove(session_id)
        del self._sessions[session_id]

    def forget_prefixes(self) -> None:
        """Forget the contexts of closed sessions. Shared pages change the last bits of what new sessions compute."""
        self._pool.forget()

    @property
    def capacity(self) -> int:
        """Sessions that fit when all are as long as a context may be; known before any opens."""
        return min(self.settings.max_sessions, self._placement.max_residents)

    def park(self, session_id: str) -> None:
        """Move an idle session's keys and values out of the pool; its next frame brings them back.

        Raises:
            SessionError: frames are still being decided, or the parked copy cannot be written.
        """
        self._idle_session(session_id)
        self._placement.park(session_id)

    @property
    def session_ids(self) -> list[str]:
        return list(self._sessions)

    def record(self, session_id: str) -> Dialogue:
        """Return the session so far as a dialogue record, which converts back to the tokens that were fed.

        Raises:
            SessionError: the session continued another, its state was set, or its first events are forgotten.
        """
        session = self._session(session_id)
        given = session.spec.state is not None and session.spec.state != TaskState.initial(len(session.spec.steps))
        if given or session.patched or session.spec.utterances:
            why = "cannot become a record, since it continued another or its state was set"
            raise session_error("no_record", f"session {session_id}: {why}")
        if session.forgot:
            why = "has forgotten its first events; raise streaming.history_events"
            raise session_error("no_record", f"session {session_id}: {why}")
        return to_dialogue(session_id, session.spec, session.history, session.counters.frames)

    def history(self, session_id: str) -> tuple[dict[int, FrameEvents], bool]:
        """Return the events by frame that the session remembers, and whether it has forgotten earlier ones."""
        session = self._session(session_id)
        return dict(session.history), session.forgot

    def segment(self, session_id: str) -> Segment | None:
        """Return what was fed since the context was last built; None until the first context is fed."""
        return self._session(session_id).segment

    # Work --------------------------------------------------------------------------------------------------

    def has_work(self) -> bool:
        return bool(self._executor) or any(session.frames or session.outbox for session in self._sessions.values())

    def step(self) -> list[tuple[str, EngineEvent]]:
        """Run one ragged forward pass for the scheduled sessions; return what happened, as (session id, event)."""
        for session_id in self._waiting(self._placement.parked):
            self._unpark(session_id)
        for session_id in self._waiting(self._placement.residents):
            session = self._sessions[session_id]
            self._placement.touch(session_id)
            self._executor.start(session_id, session.decide(), session.cache)
        if self._executor:
            self._step_seconds.append(_timed(self._executor.step))
        events = [(sid, event) for sid, session in self._sessions.items() for event in _drain(session.outbox)]
        for session_id, event in events:
            if isinstance(event, Failed):
                self.close(session_id)
        return events

    def _activity(self, session_id: str) -> Activity:
        if session_id in self._executor:
            return "working"
        return "waiting" if self._sessions[session_id].frames else "idle"

    def _waiting(self, session_ids: Iterable[str]) -> list[str]:
        return [session_id for session_id in session_ids if self._activity(session_id) == "waiting"]

    def _unpark(self, session_id: str) -> None:
        try:
            self._placement.unpark(session_id, self._sessions[session_id].cache)
        except SessionError as error:
            self._fail(session_id, error)

    def stats(self) -> EngineStats:
        """Return what was done so far, and what is in the pool now."""
        counters = [self._closed.total, *(session.counters for session in self._sessions.values())]
        return EngineStats(
            sessions=len(self._sessions),
            parked=len(self._placement.parked),
            capacity=self.capacity,
            pages=self._pool.counts(),
            page_bytes=self._pool.bytes_per_page,
            frames=sum(c.frames for c in counters),
            fast_frames=sum(c.fast_frames for c in counters),
            tokens=self._executor.num_tokens,
            lm_head_rows=self._executor.lm_head_rows,
            step_seconds=tuple(self._step_seconds),
        )

    def _fail(self, session_id: str, error: Exception) -> None:
        log.error("session %s failed", session_id, exc_info=error)
        session = self._sessions[session_id]
        session.frames.clear()
        session.outbox.append(Failed(str(error) or type(error).__name__))

    # Moving sessions ---------------------------------------------------------------------------------------

    def export(self, session_id: str, parked: bool = False) -> dict[str, Any]:
        """Return the session's log, from which another engine continues it: JSON, without keys and values.

        A frame that is not decided yet is in the log as one that waits; what was said of it so far is not. With
        `parked`, `cache` holds keys and values as safetensors bytes, and the other engine computes nothing again. They
        are left out if a patched state makes the next frame rebuild the context.

        Raises:
            SessionError: the first context is still being fed, or with `parked`, a frame is being decided.
        """
        session = self._idle_session(session_id) if parked else self._session(session_id)
        exported = session.export()
        if exported is None:
            raise session_error("in_progress", f"session {session_id}: its first context is still being fed")
        log = {
            "session_id": session_id,
            "fingerprint": self.loaded.fingerprint,
            "model": model_hash(self._model),
            **exported.to_json(),
        }
        if parked and not exported.stale:
            vectors = {} if session.step_vectors is None else {"step_vectors": session.step_vectors.cpu()}
            log["cache"] = pack(self._placement.copy(session_id) | vectors)
            log["weights"] = self._weights
        return log

    def progress(self, session_id: str) -> dict[str, Any] | None:
        """Return what a log taken earlier needs, beside the frames decided since, to stand here (`SessionLog`)."""
        return self._session(session_id).progress()

    @cached_property
    def _weights(self) -> str:
        return weights_hash(self._model)

    def import_(self, log: Mapping[str, Any]) -> str:
        """Open a session from its log; put its cache back, or feed its tokens again. Returns its id.

        Raises:
            SessionError: the log is unreadable or does not fit this engine, or the id is in use.
            FingerprintError: the log was recorded with another encoder.
        """
        restored = checked_log(log, self.loaded, self._parts.builder)
        session_id = str(log.get("session_id"))
        policy, randomness = restored.gate.policy, restored.randomness
        self._admit(session_id, restored.spec, policy.dst_decoder)
        session = Session(self._parts_of(restored.spec), restored.spec, self._new_table(), policy, randomness)
        if "cache" in log:
            parked = checked_cache(log, restored, self.loaded, self._parts.builder, self._weights)
            put_back(self._pool, session.cache, parked)
            vectors = parked.get("step_vectors")
            session.restore(restored, None if vectors is None else vectors.to(self._pool.device))
            self._add(session_id, session)
        else:
            session.restore(restored)
            self._add(session_id, session)
            self._executor.start(session_id, session.start(), session.cache)
        return session_id

    # Helpers -----------------------------------------------------------------------------------------------

    def _session(self, session_id: str) -> Session:
        try:
            return self._sessions[session_id]
        except KeyError:
            raise UnknownSessionError(f"session {session_id!r} is not open here", field="session_id") from None

    def _idle_session(self, session_id: str) -> Session:
        session = self._session(session_id)
        if self._activity(session_id) != "idle" or session.segment is None:
            raise session_error("in_progress", f"session {session_id}: frames are still being decided")
        return session

    def _add(self, session_id: str, session: Session) -> None:
        self._sessions[session_id] = session
        self._placement.add(session_id, session.cache)

    def _admit(self, session_id: str, spec: SessionSpec, dst_decoder: DstDecoder) -> None:
        if session_id in self._sessions:
            raise session_error("session_exists", f"session {session_id!r} is open already", "session_id")
        if len(self._sessions) >= self.settings.max_sessions:
            raise session_error("busy", f"all {self.settings.max_sessions} sessions are taken; try again later")
        if self._placement.is_full() and (self.settings.parking == "off" or not self._placement.make_room()):
            places = self._placement.max_residents
            raise OutOfPagesError(f"all pages are promised to {places} sessions; close one or try again later")
        if spec.tracked:
            self.loaded.require_trained("dst_update", *(["dst_state"] if dst_decoder == "readout" else []))
        if spec.state is not None and len(spec.state) != len(spec.steps):
            raise SessionError(f"state: has {len(spec.state)} steps, the recipe has {len(spec.steps)}", field="state")

    def _parts_of(self, spec: SessionSpec) -> SessionParts:
        """What a session shares with those of its context strategy."""
        if spec.strategy is None:
            return self._parts
        if spec.strategy not in self._parts_by_strategy:
            context = self.context.model_copy(update={"strategy": spec.strategy})
            self._parts_by_strategy[spec.strategy] = dataclasses.replace(self._parts, context=context)
        return self._parts_by_strategy[spec.strategy]

    def _new_table(self) -> BlockTable:
        return BlockTable(self._pool, self.context.max_seq_len, self.settings.share_prefixes)


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _drain(outbox: list[EngineEvent]) -> list[EngineEvent]:
    events = outbox.copy()
    outbox.clear()
    return events
