"""The streaming engine: many sessions, one forward pass.

A plain Python object that a test, the evaluator and the Serve deployment drive alike.
"""

import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from prospect.dialogue.prompt import ContextSettings
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.state import StepState, TaskState
from prospect.errors import FingerprintError, SessionError, UnknownSessionError
from prospect.lineage import fingerprint
from prospect.model.checkpoint import LoadedModel
from prospect.streaming.journal import Segment, SessionLog, to_dialogue
from prospect.streaming.memory import make_pool
from prospect.streaming.outputs import Event, Failed, SessionSpec
from prospect.streaming.pages import BlockTable
from prospect.streaming.passes import make_trunk
from prospect.streaming.scheduler import Scheduler
from prospect.streaming.session import Counters, DecisionPolicy, Session, SessionParts
from prospect.streaming.settings import StreamingSettings
from prospect.streaming.work import Work

log = logging.getLogger(__name__)


class StreamingEngine:
    """Opens sessions, takes frames, and decides them in `step`.

    Args:
        loaded: the model.
        context: how contexts are made.
        settings: of the engine.
        equivalent_to: fingerprints of embeddings that are taken beside those of the model's own.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        context: ContextSettings,
        settings: StreamingSettings,
        equivalent_to: Collection[str] = (),
    ) -> None:
        self.loaded = loaded
        self._accepted = {loaded.fingerprint, *equivalent_to}
        self.settings = settings
        self.context = context
        self._model = loaded.model
        self._parts = SessionParts(
            loaded.model, loaded.vocabulary, context, settings.state_policy, settings.catch_up_frames
        )
        self._pool = make_pool(loaded.model, settings, context.max_seq_len)
        self._sessions: dict[str, Session] = {}
        self._work = Work(
            loaded.model,
            make_trunk(loaded.model, self._pool, settings, context.max_seq_len),
            Scheduler(settings.step_tokens, settings.chunk_tokens, settings.patience),
            settings.deterministic,
            self._fail,
        )

    # Sessions ----------------------------------------------------------------------------------------------

    def open(self, session_id: str, spec: SessionSpec) -> None:
        """Opens a session; its context is fed by the next steps.

        Raises:
            SessionError: the id is taken, all places are (`busy`), or the context leaves no room.
            UntrainedHeadError: a recipe is given and the model never learned to track one.
        """
        self._admit(session_id, spec)
        session = Session(self._parts, spec, self._new_table(), self._policy(spec))
        self._sessions[session_id] = session
        self._work.start(session_id, session.start(), session.cache)

    def push_frame(self, session_id: str, embedding: np.ndarray, fingerprint: str | None = None) -> int:
        """Queues a frame's features [I, D]; returns its index.

        Raises:
            UnknownSessionError, FingerprintError, SessionError: `wrong_shape`, `overloaded`.
        """
        session = self._session(session_id)
        if fingerprint is not None and fingerprint not in self._accepted:
            raise FingerprintError(
                f"fingerprint: the frame was encoded with {fingerprint}, the model expects {self.loaded.fingerprint}; "
                f"the server can declare it as good with vision.equivalent_to=[{fingerprint}]",
                field="fingerprint",
            )
        config = self._model.config
        expected = (config.tokens_per_frame, config.vision_dim)
        if embedding.shape != expected:
            raise _coded(
                SessionError(
                    f"embedding: has shape {list(embedding.shape)}, expected {list(expected)}", field="embedding"
                ),
                "wrong_shape",
            )
        embedding = np.asarray(embedding, np.float16)
        if not np.isfinite(embedding).all():
            raise SessionError("embedding: holds values that are not finite", field="embedding")
        if len(session.frames) >= self.settings.max_waiting_frames:
            raise _coded(
                SessionError(f"session {session_id}: {len(session.frames)} frames are waiting already", field="seq"),
                "overloaded",
            )
        return session.push_frame(embedding)

    def push_text(self, session_id: str, text: str) -> None:
        """Text of the user; it joins the next frame."""
        self._session(session_id).push_text(text)

    def patch_state(self, session_id: str, changes: Mapping[str, str]) -> TaskState:
        """Sets steps by id, such as {"S2": "completed"}; returns the new state.

        Raises:
            SessionError: a step or a state that does not exist; nothing is changed then.
        """
        session = self._session(session_id)
        steps = list(session.state.steps)
        for step_id, label in changes.items():
            index = int(step_id[1:]) - 1 if step_id[:1] == "S" and step_id[1:].isdecimal() else -1
            if not 0 <= index < len(steps):
                raise SessionError(f"state: no step {step_id!r} in a recipe of {len(steps)}", field="state")
            if label.upper() not in StepState.__members__:
                known = ", ".join(state.label for state in StepState)
                raise SessionError(f"state.{step_id}: {label!r} is none of {known}", field="state")
            steps[index] = StepState[label.upper()]
        session.patch_state(TaskState(tuple(steps)))
        return session.state

    def state(self, session_id: str) -> TaskState:
        return self._session(session_id).state

    def counters(self, session_id: str) -> Counters:
        return self._session(session_id).counters

    def waiting(self, session_id: str) -> int:
        """Frames pushed and not decided."""
        session = self._session(session_id)
        return session.num_pushed - session.counters.frames

    def close(self, session_id: str) -> None:
        """Forgets the session and frees its pages."""
        self._session(session_id).cache.truncate(0)
        self._work.drop(session_id)
        del self._sessions[session_id]

    @property
    def session_ids(self) -> list[str]:
        return list(self._sessions)

    def record(self, session_id: str) -> Dialogue:
        """The session so far as a dialogue record (DESIGN 4.2: it converts back to the tokens that were fed)."""
        session = self._session(session_id)
        given = session.spec.state is not None and session.spec.state != TaskState.initial(len(session.spec.steps))
        if given or session.patched or session.spec.utterances:
            raise SessionError(f"session {session_id}: it continued another or its state was set; it makes no record")
        return to_dialogue(session_id, session.spec, session.history, session.counters.frames)

    def segment(self, session_id: str) -> Segment | None:
        """What was fed since the context was last built."""
        return self._session(session_id).segment

    # Work --------------------------------------------------------------------------------------------------

    def has_work(self) -> bool:
        return bool(self._work) or any(session.frames or session.outbox for session in self._sessions.values())

    def step(self) -> list[tuple[str, Event]]:
        """One ragged forward for the sessions whose turn it is; returns what happened, by session."""
        for session_id, session in self._sessions.items():
            if session.frames and session_id not in self._work:
                self._work.start(session_id, session.decide(), session.cache)
        self._work.step()
        events = [(sid, event) for sid, session in self._sessions.items() for event in _drain(session.outbox)]
        for session_id, event in events:
            if isinstance(event, Failed):
                self.close(session_id)
        return events

    def _fail(self, session_id: str, error: Exception) -> None:
        log.error("session %s failed", session_id, exc_info=error)
        session = self._sessions[session_id]
        session.frames.clear()
        session.outbox.append(Failed(str(error) or type(error).__name__))

    # Moving sessions ---------------------------------------------------------------------------------------

    def export(self, session_id: str) -> dict[str, Any]:
        """The session's log: JSON, without keys and values; another engine continues from it.

        Raises:
            SessionError: frames are still being decided.
        """
        session = self._session(session_id)
        if session_id in self._work or session.frames or session.segment is None:
            raise _coded(SessionError(f"session {session_id}: frames are still being decided"), "in_progress")
        return {
            "session_id": session_id,
            "fingerprint": self.loaded.fingerprint,
            "model": self._model_hash,
            **session.export().to_json(),
        }

    def import_(self, log: Mapping[str, Any]) -> str:
        """Opens a session from its log; the cache is rebuilt from the tokens. Returns its id.

        Raises:
            SessionError: the log is unreadable, or the id is taken here.
            FingerprintError: it was recorded with another encoder.
        """
        if log.get("fingerprint") != self.loaded.fingerprint:
            raise FingerprintError(
                f"session log: recorded with {log.get('fingerprint')}, this model expects {self.loaded.fingerprint}"
            )
        session_id, restored = str(log.get("session_id")), SessionLog.from_json(log)
        self._check_log(log, restored)
        self._admit(session_id, restored.spec)
        session = Session(self._parts, restored.spec, self._new_table(), self._policy(restored.spec))
        session.restore(restored)
        self._sessions[session_id] = session
        self._work.start(session_id, session.start(), session.cache)
        return session_id

    @property
    def _model_hash(self) -> str:
        """Whose tokens a log holds."""
        config = self._model.config
        return fingerprint([config.vocab_size, config.hidden_size, config.num_hidden_layers, config.grammar_ids])

    def _check_log(self, log: Mapping[str, Any], restored: SessionLog) -> None:
        """What a foreign or damaged log would break is refused before a session is opened."""
        segment, config = restored.segment, self._model.config
        if log.get("model") != self._model_hash:
            raise SessionError("session log: recorded with another model", field="model")
        frames = [*segment.tail, *segment.frames, *restored.tail]
        if any(frame.shape != (config.tokens_per_frame, config.vision_dim) for frame in frames):
            raise SessionError("session log: frames of another shape than the model's", field="segment")
        if len(segment.frames) != len(segment.events) or len(segment.tail) != segment.context.tail_frames:
            raise SessionError("session log: its frames and its events differ in number", field="segment")
        length = len(segment.sequence(self.loaded.vocabulary, config.tokens_per_frame).ids)
        if length > self.context.max_seq_len:
            raise SessionError(f"session log: {length} tokens, this engine holds {self.context.max_seq_len}")

    # Helpers -----------------------------------------------------------------------------------------------

    def _session(self, session_id: str) -> Session:
        try:
            return self._sessions[session_id]
        except KeyError:
            raise UnknownSessionError(f"session {session_id!r} is not open here", field="session_id") from None

    def _admit(self, session_id: str, spec: SessionSpec) -> None:
        if session_id in self._sessions:
            raise _coded(SessionError(f"session {session_id!r} is open already", field="session_id"), "session_exists")
        if len(self._sessions) >= self.settings.max_sessions:
            raise _coded(SessionError(f"all {self.settings.max_sessions} sessions are taken; try again later"), "busy")
        if spec.tracked:
            self.loaded.require_trained(
                "dst_update", *(["dst_state"] if self.settings.dst_decoder == "readout" else [])
            )
        if spec.state is not None and len(spec.state) != len(spec.steps):
            raise SessionError(f"state: has {len(spec.state)} steps, the recipe has {len(spec.steps)}", field="state")

    def _policy(self, spec: SessionSpec) -> DecisionPolicy:
        """With the session's own thresholds, else those of `StreamingSettings.thresholds`."""
        chosen = self.settings.thresholds(self._model.config.thresholds, spec.dataset)
        own = {"speak": spec.speak_threshold, "update": spec.update_threshold}
        chosen |= {name: threshold for name, threshold in own.items() if threshold is not None}
        return DecisionPolicy(
            chosen["speak"], chosen["update"], self.settings.cooldown_frames, self.settings.dst_decoder
        )

    def _new_table(self) -> BlockTable:
        return BlockTable(self._pool, self.context.max_seq_len, self.settings.share_prefixes)


def _drain(outbox: list[Event]) -> list[Event]:
    events = outbox.copy()
    outbox.clear()
    return events


def _coded(error: SessionError, code: str) -> SessionError:
    error.code = code
    return error
