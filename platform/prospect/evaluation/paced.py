"""Latency-aware evaluation: frames arrive as in live sessions, and wait or are dropped while the engine works.

Frame k of a session arrives (k + 1) / (fps * speed) seconds after the session's start, with the user's texts that
belong to it. Waiting and dropping follow the server's rule (`prospect.streaming.waiting`).

**The clock** advances by the measured duration of the engine's steps, and jumps to the next arrival where the engine
has nothing to do. That equals a run that sleeps until then: an idle engine computes nothing, so that no later event
depends on whether a pause was slept or skipped (that a processor rests in a pause is the one thing left out). A frame
that arrives during a step reaches the engine behind it, as in the server, whose engine works in one thread.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from prospect.dialogue.timeline import FPS
from prospect.errors import SessionError
from prospect.evaluation.pace_record import PacedDialogue, PacedRun, TimedDecision
from prospect.evaluation.records import Placed, scored_frames
from prospect.evaluation.settings import PacedSettings
from prospect.evaluation.stream import ReadDialogue, spec_of
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.types import Decision, EngineEvent, Failed, TextPiece
from prospect.streaming.waiting import FRAMES_AHEAD, drop_oldest, send_ahead

Clock = Callable[[], float]
"""Returns seconds; the difference between two calls is the time between them."""


def stream_paced(
    engine: StreamingEngine,
    placed: Sequence[Placed],
    read: ReadDialogue,
    settings: PacedSettings,
    clock: Clock = time.perf_counter,
) -> PacedRun:
    """Run every dialogue once as a live session, `settings.sessions` of them at any time.

    Sessions start at different moments of the interval between two frames. Where one ends the next dialogue begins;
    behind the last one, and beside fewer dialogues than sessions, dialogues are repeated as load and not recorded.

    Args:
        engine: with room for `settings.sessions` sessions.
        placed: dialogues with their timelines.
        read: features of a dialogue's frames.
        settings: speed, number of sessions, and limits of waiting frames.
        clock: measures the engine's steps.

    Raises:
        SessionError: a dialogue does not fit the engine's context, or a session met a defect.
    """
    return _PacedStreaming(engine, placed, read, settings, clock).run()


@dataclass
class _Frame:
    """A frame that has arrived and is not decided."""

    index: int
    """Among the frames that the client sent."""
    features: np.ndarray
    texts: list[str]
    arrived: float
    droppable: bool = True
    in_engine: bool = False


@dataclass
class _LiveSession:
    """One dialogue, as a client sends it and a server takes it."""

    engine: StreamingEngine
    settings: PacedSettings
    name: str
    placed: Placed
    position: int | None
    """Of the dialogue, where this session is its record; None: the session is there as load."""
    features: np.ndarray
    """[T, I, D] of the dialogue's frames."""
    began: float
    num_sent: int = -1
    """Frames sent so far; -1 until the session is opened."""
    waiting: deque[_Frame] = field(default_factory=deque)
    texts: list[str] = field(default_factory=list)
    """Texts of dropped frames that no frame stood behind."""
    first_token: float | None = None
    """When the utterance began that is being generated."""
    decisions: list[TimedDecision] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    refused_texts: int = 0

    @property
    def due(self) -> float:
        """When the client does the next thing: open the session, then send frame after frame."""
        if self.num_sent == len(self.features):
            return float("inf")
        return self.began + (self.num_sent + 1) / (FPS * self.settings.speed)

    @property
    def is_over(self) -> bool:
        return self.num_sent == len(self.features) and not self.waiting

    def act(self) -> None:
        """Do what is due."""
        now, frame = self.due, self.num_sent
        self.num_sent += 1
        if frame < 0:
            return self.engine.open(self.name, spec_of(*self.placed))
        dialogue, timeline = self.placed
        said = timeline[scored_frames(dialogue, timeline).start + frame].user
        self.waiting.append(_Frame(frame, self.features[frame], [*self.texts, *said], now))
        self.texts.clear()
        self.advance(now)

    def take(self, event: EngineEvent, now: float) -> None:
        """Note what the engine says, `now` being the end of its step."""
        if isinstance(event, Failed):
            raise SessionError(f"dialogue {self.placed[0].dialogue_id!r} cannot be streamed: {event.reason}")
        if isinstance(event, TextPiece) and self.first_token is None:
            self.first_token = now
        if isinstance(event, Decision):
            frame = self.waiting.popleft()
            spoken = None if event.utterance is None else self.first_token or now
            decision = replace(event, frame=frame.index)  # the engine counts the frames that it was given
            self.decisions.append(TimedDecision(decision, frame.arrived, now, spoken))
            self.first_token = None

    def advance(self, now: float) -> None:
        """Send the engine what it may have ahead, then drop what has to go."""
        most = min(FRAMES_AHEAD, self.engine.settings.max_waiting_frames)
        for frame in send_ahead(self.waiting, most):
            for text in frame.texts:
                self._push_text(text)
            self.engine.push_frame(self.name, frame.features)
        since = now - self.settings.max_delay_s
        while found := drop_oldest(self.waiting, self.settings.max_waiting_frames, since):
            frame, behind = found
            (self.texts if behind is None else behind.texts)[:0] = frame.texts
            self.dropped.append(frame.index)

    def _push_text(self, text: str) -> None:
        try:
            self.engine.push_text(self.name, text)
        except SessionError:  # texts of dropped frames have joined it: a server answers with an error and goes on
            self.refused_texts += 1

    def record(self) -> PacedDialogue:
        return PacedDialogue(*self.placed, self.decisions, self.dropped, self.refused_texts)


class _PacedStreaming:
    """The sessions of one run, and the clock."""

    def __init__(
        self,
        engine: StreamingEngine,
        placed: Sequence[Placed],
        read: ReadDialogue,
        settings: PacedSettings,
        clock: Clock,
    ) -> None:
        self._engine, self._placed, self._read = engine, placed, read
        self._settings, self._clock = settings, clock
        self._streamed = [at for at, pair in enumerate(placed) if len(scored_frames(*pair))]
        self._now = 0.0
        self._steps: list[float] = []
        self._sessions: dict[str, _LiveSession] = {}
        self._num_begun = 0
        self._finished = {at: PacedDialogue(*pair, ()) for at, pair in enumerate(placed) if at not in self._streamed}
        """By position in `placed`; a dialogue without frames is finished."""

    def run(self) -> PacedRun:
        interval = 1 / (FPS * self._settings.speed)
        try:
            for number in range(self._settings.sessions if self._streamed else 0):
                self._begin(number / self._settings.sessions * interval)
            while len(self._finished) < len(self._placed):
                self._act_until_now()
                if self._engine.has_work():
                    self._step()
                else:
                    self._now = max(self._now, min(session.due for session in self._sessions.values()))
        finally:
            for name in self._sessions.keys() & set(self._engine.session_ids):
                self._engine.close(name)
        return PacedRun([self._finished[at] for at in range(len(self._placed))], self._settings, self._steps, self._now)

    def _begin(self, at: float) -> None:
        number, self._num_begun = self._num_begun, self._num_begun + 1
        position = self._streamed[number % len(self._streamed)]
        dialogue, timeline = placed = self._placed[position]
        span = scored_frames(dialogue, timeline)
        features = self._read(dialogue, span.start, span.stop)
        recorded = position if number < len(self._streamed) else None
        name = str(number)
        self._sessions[name] = _LiveSession(self._engine, self._settings, name, placed, recorded, features, at)

    def _act_until_now(self) -> None:
        """Do what clients have done by now, in its order."""
        while (session := min(self._sessions.values(), key=lambda each: each.due)).due <= self._now:
            session.act()

    def _step(self) -> None:
        began = self._clock()
        events = self._engine.step()
        self._steps.append(self._clock() - began)
        self._now += self._steps[-1]
        self._act_until_now()  # during the step
        for name, event in events:
            self._sessions[name].take(event, self._now)
        for name in dict.fromkeys(name for name, _ in events):
            session = self._sessions[name]
            session.advance(self._now)
            if session.is_over:
                self._end(session)

    def _end(self, session: _LiveSession) -> None:
        """Close a session, and begin the next in its place."""
        self._engine.close(session.name)
        del self._sessions[session.name]
        if session.position is not None:
            self._finished[session.position] = session.record()
        if len(self._finished) < len(self._placed):
            self._begin(self._now)
