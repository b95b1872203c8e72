"""The engine as the benchmark drives it: through its public methods alone."""

from collections.abc import Sequence

import numpy as np

from prospect.benchmarks.engine.load import BLOCK_TOKENS, TAIL_FRAMES, Happening, Workload
from prospect.benchmarks.engine.model import DIGIT
from prospect.dialogue.prompt import ContextSettings, build_context
from prospect.dialogue.state import TaskState
from prospect.dialogue.timeline import FPS
from prospect.dialogue.vocabulary import Vocabulary
from prospect.errors import ConfigError, ProspectError
from prospect.model.checkpoint import LoadedModel
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from prospect.streaming.types import Decision, Failed, Refreshed, SessionSpec, TextPiece

_MIN_DELTA_TOKENS = 8
_WARM_UP = 2
"""Frames of every session before frame 0."""


def planned_engine(
    loaded: LoadedModel, workload: Workload, settings: StreamingSettings, sessions: int
) -> StreamingEngine:
    """An engine for `sessions` sessions at once that speaks as the workload plans, and rebuilds contexts as long."""
    context = ContextSettings(
        max_seq_len=workload.context,
        max_context_tokens=workload.rebuilt,
        last_utterances=0,
        tail_seconds=TAIL_FRAMES / FPS,
        max_utterance_tokens=workload.suite.utterance_tokens,
        max_delta_tokens=_MIN_DELTA_TOKENS,
    )
    update = {
        "max_sessions": sessions,
        "max_waiting_frames": 1 << 20,
        "cooldown_frames": 0,
        "speak_hysteresis": None,
        "speak_threshold": 0.5,
    }
    return StreamingEngine(loaded, context, settings.model_copy(update=update))


class EngineSystem:
    """Sessions without a recipe: they speak or are silent, and track nothing.

    A session's context is background text of a quarter of the full length, its own, so that no prefix is shared. A
    text of the user brings it to the length at which it starts; a rebuilt context leaves that out.
    """

    def __init__(self, loaded: LoadedModel, workload: Workload, settings: StreamingSettings) -> None:
        self._workload, self._vocabulary = workload, loaded.vocabulary
        self._engine = planned_engine(loaded, workload, settings, workload.sessions)
        self._ids: list[str] = []
        self._offsets: list[int] = []
        self._opened = 0

    def fill(self, lengths: Sequence[int]) -> None:
        for session, length in enumerate(lengths):
            self._ids.append("")
            self._offsets.append(0)
            self._open(session, length, 0)
        self._drain()

    def replace(self, session: int, length: int, frame: int) -> None:
        """Closes a session and opens another in its place, whose next frame is `frame`."""
        self._engine.close(self._ids[session])
        self._open(session, length, frame)
        self._drain()

    def push(self, session: int, frame: int, features: np.ndarray, speaks: bool) -> None:
        self._engine.push_frame(self._ids[session], features)

    def busy(self) -> bool:
        return self._engine.has_work()

    def step(self) -> list[Happening]:
        numbers = {session_id: session for session, session_id in enumerate(self._ids)}
        happenings = []
        for session_id, event in self._engine.step():
            session = numbers[session_id]
            frame = getattr(event, "frame", 0) + self._offsets[session]
            match event:
                case TextPiece():
                    happenings.append(Happening(session, frame, "text"))
                case Decision():
                    spoke = event.utterance is not None
                    happenings.append(Happening(session, frame, "decided", event.fast, spoke))
                case Refreshed():
                    happenings.append(Happening(session, frame, "refreshed"))
                case Failed():
                    raise ProspectError(f"benchmark: session {session_id} failed: {event.reason}")
        return happenings

    def clear(self) -> None:
        self._drain()

    def close(self) -> None:
        for session_id in self._engine.session_ids:
            self._engine.close(session_id)

    def _drain(self) -> None:
        while self._engine.has_work():
            self.step()

    def _open(self, session: int, length: int, frame: int) -> None:
        rng = np.random.default_rng([self._workload.suite.seed, self._opened])
        session_id = f"{session}.{self._opened}"
        self._opened += 1
        knowledge = background(rng, self._vocabulary, self._engine.context.layout, self._workload)
        self._engine.open(session_id, SessionSpec(knowledge=knowledge))
        missing = length - self._workload.rebuilt - BLOCK_TOKENS - _WARM_UP
        if missing > 0:
            self._engine.push_text(session_id, _digits(rng, missing))
        self._ids[session], self._offsets[session] = session_id, frame - _WARM_UP
        silent = self._workload.features(session, frame)
        silent[0, 0] = -1
        for _ in range(_WARM_UP):
            self._engine.push_frame(session_id, silent)


def background(rng: np.random.Generator, vocabulary: Vocabulary, layout: int, workload: Workload) -> str:
    """Digits with which a context is as long as a rebuilt one.

    Raises:
        ConfigError: the prompt alone is longer.
    """
    one = build_context(vocabulary, goal="", steps=(), state=TaskState(()), knowledge=DIGIT, layout=layout)
    empty = one.num_text - 1
    if workload.rebuilt < empty:
        raise ConfigError(
            f"`suite.contexts` has {workload.context}: a quarter of it has to hold {empty} tokens of prompt.",
            field="suite.contexts",
        )
    return _digits(rng, workload.rebuilt - empty)


def _digits(rng: np.random.Generator, number: int) -> str:
    """`number` tokens."""
    return "".join(map(str, rng.integers(0, 10, number)))
