"""The event-to-frame rule, there and back (docs/architecture.md#events-and-frames).

Frame k covers [k/fps, (k+1)/fps) and is decided at (k+1)/fps. Training, evaluation, refresh and the
conversion of recorded sessions all place events through `place`.
"""

import math
from dataclasses import dataclass, field

from prospect.dialogue.schema import Dialogue, TimedTransition, Turn
from prospect.dialogue.state import Delta, StatePolicy, TaskState, Transition

FPS = 2
"""Frames a second that the model sees."""

CLAMP_S = 0.5
"""An event this far past the end still belongs to the last frame; one further out is quarantined."""

_EPSILON = 1e-6
"""Frames of slack against decimal times: 4.1 + 0.4 is 4.499999... and belongs to frame 9."""


_MOST_FRAMES = 2.0**53
"""Stands for every larger number of frames: the product of a very long time overflows to infinity."""


def num_frames(duration: float, fps: float = FPS) -> int:
    """T = max(1, floor(duration * fps)) for a duration in seconds."""
    return max(1, frame_at(duration, fps))


def frame_at(time: float, fps: float = FPS) -> int:
    """The frame whose picture covers `time` (seconds)."""
    return math.floor(min(time * fps + _EPSILON, _MOST_FRAMES))


def nearest_frame(elapsed: float, fps: float = FPS) -> int:
    """The frame of a live picture, `elapsed` seconds after the first; tolerates half an interval of jitter."""
    return frame_at(elapsed + 0.5 / fps, fps)


def decision_frame(time: float, fps: float = FPS) -> int:
    """The last frame that is decided at or before `time` (seconds)."""
    return max(frame_at(time, fps) - 1, 0)


def decision_time(frame: int, fps: float = FPS) -> float:
    """Seconds at which `frame` is decided; also when a live client sends it."""
    return (frame + 1) / fps


@dataclass(frozen=True)
class FrameEvents:
    """What happens around one frame, in the order of the grammar."""

    user: tuple[str, ...] = ()
    """User turns that stand before the image, in source order."""
    delta: Delta = ()
    utterance: str | None = None
    labels: str = ""
    """Of the utterance, as its turn has them."""

    @property
    def turns(self) -> list[tuple[str, str]]:
        """(role, text) of what was said, oldest first."""
        said = [] if self.utterance is None else [("assistant", self.utterance)]
        return [("user", text) for text in self.user] + said


@dataclass(frozen=True)
class Quarantined:
    """An event that has no place in the video, with the reason in one sentence."""

    what: str
    reason: str


NOTHING = FrameEvents()


@dataclass(frozen=True)
class Timeline:
    """The events of one dialogue by frame, 0 <= frame < num_frames."""

    num_frames: int
    num_steps: int
    events: dict[int, FrameEvents] = field(default_factory=dict)
    """Only frames at which something happens."""
    quarantined: tuple[Quarantined, ...] = ()
    progress: dict[int, str] = field(default_factory=dict)
    """What is known of the progress after a frame, where it changes; what was known before the first frame too."""

    def __getitem__(self, frame: int) -> FrameEvents:
        return self.events.get(frame, NOTHING)

    def states(self, policy: StatePolicy = "strict") -> list[TaskState]:
        """The state after each frame's delta, one per frame."""
        return self.states_from(TaskState.initial(self.num_steps), 0, self.num_frames, policy)

    def states_from(self, state: TaskState, start: int, stop: int, policy: StatePolicy = "strict") -> list[TaskState]:
        """The state after the delta of each frame in [start, stop), from the `state` before `start`."""
        states: list[TaskState] = []
        for frame in sorted(frame for frame, events in self.events.items() if events.delta and start <= frame < stop):
            states += [state] * (frame - start - len(states))
            state, _ = state.apply(self[frame].delta, policy)
        return states + [state] * (stop - start - len(states))

    def state_before(self, frame: int, policy: StatePolicy = "strict") -> TaskState:
        """The replay of all deltas of earlier frames."""
        state = TaskState.initial(self.num_steps)
        for earlier in sorted(self.events):
            if earlier < frame:
                state, _ = state.apply(self[earlier].delta, policy)
        return state

    def progress_before(self, frame: int) -> str | None:
        """The summary that the last assistant turn before frame `frame` gives; None: nobody has given one."""
        known = max((earlier for earlier in self.progress if earlier < frame), default=None)
        return None if known is None else self.progress[known]

    def utterances_before(self, frame: int) -> list[tuple[str, str]]:
        """(role, text) of everything said before frame `frame`'s image, its own user turns excluded."""
        said = []
        for earlier in sorted(self.events):
            if earlier < frame:
                said += [("user", text) for text in self[earlier].user]
                if (utterance := self[earlier].utterance) is not None:
                    said.append(("assistant", utterance))
        return said


class _PastTheEndError(Exception):
    pass


def place(dialogue: Dialogue, total_frames: int, fps: float = FPS) -> Timeline:
    """Puts every turn and transition of `dialogue` on its frame, each exactly once.

    Args:
        dialogue: the record; its turns are taken in source order.
        total_frames: T of the video (of its embedding, where there is one).
        fps: frames a second.

    Returns:
        The timeline. What lies more than `CLAMP_S` past the last frame, or finds no free frame before
        the end, is in `quarantined`, with its time.
    """
    last = total_frames - 1
    end = _end(dialogue, total_frames, fps)
    builder = _Builder(last)
    quarantined: list[Quarantined] = []

    def inside(frame: int, time: float) -> int:
        if frame <= last:
            return frame
        if time > end + CLAMP_S:
            raise _PastTheEndError
        return last

    def quarantine(what: str, time: float) -> None:
        quarantined.append(
            Quarantined(what, f"time {time:g} s lies beyond the video's end at {end:g} s ({total_frames} frames)")
        )

    for transition in dialogue.transitions():
        try:
            builder.add_transition(inside(decision_frame(transition.time, fps), transition.time), transition)
        except _PastTheEndError:
            quarantine(str(Transition.of(transition.step, transition.kind)), transition.time)

    user_frame, assistant_frame = 0, -1
    for turn in dialogue.turns:
        try:
            if turn.role == "user":
                user_frame = builder.add_user(inside(frame_at(turn.time, fps), turn.time), turn)
            else:
                earliest = max(decision_frame(turn.time, fps), user_frame, assistant_frame + 1)
                assistant_frame = builder.add_assistant(inside(earliest, turn.time), turn)
        except _PastTheEndError:
            quarantine(f"{turn.role} turn {turn.text!r}", turn.time)
    progress = _progress(dialogue, total_frames, builder.progress)
    return Timeline(total_frames, len(dialogue.steps), builder.build(), tuple(quarantined), progress)


def _progress(dialogue: Dialogue, total_frames: int, said: dict[int, str]) -> dict[int, str]:
    """What the assistant's turns give, between what the record carries in and what it ends with."""
    first, last = dialogue.first_frame or 0, min(dialogue.last_frame or total_frames, total_frames) - 1
    carried = {first - 1: dialogue.progress} if dialogue.progress else {}
    return carried | said | ({last: dialogue.summary} if dialogue.summary else {})


def _end(dialogue: Dialogue, total_frames: int, fps: float) -> float:
    """The end that the frames show; the source's own where it lies within the part of a frame that T leaves out."""
    shown = total_frames / fps
    stated = dialogue.end
    return stated if stated is not None and shown <= stated < shown + 1 / fps else shown


class _Builder:
    """Collects events by frame; knows that a frame holds one utterance at most."""

    def __init__(self, last: int) -> None:
        self._last = last
        self._user: dict[int, list[str]] = {}
        self._delta: dict[int, list[Transition]] = {}
        self._utterance: dict[int, Turn] = {}
        self.progress: dict[int, str] = {}

    def add_transition(self, frame: int, transition: TimedTransition) -> None:
        self._delta.setdefault(frame, []).append(Transition.of(transition.step, transition.kind))

    def add_user(self, frame: int, turn: Turn) -> int:
        self._user.setdefault(frame, []).append(turn.text)
        return frame

    def add_assistant(self, frame: int, turn: Turn) -> int:
        """Two turns clamped to the last frame cannot both stand there: the second is past the end."""
        if frame in self._utterance:
            raise _PastTheEndError
        self._utterance[frame] = turn
        if turn.progress:
            self.progress[frame] = turn.progress
        return frame

    def build(self) -> dict[int, FrameEvents]:
        frames = sorted(self._user.keys() | self._delta.keys() | self._utterance.keys())
        return {frame: self._at(frame) for frame in frames}

    def _at(self, frame: int) -> FrameEvents:
        user, delta, turn = self._user.get(frame, ()), self._delta.get(frame, ()), self._utterance.get(frame)
        said = (turn.text, turn.labels) if turn else (None, "")
        return FrameEvents(tuple(user), tuple(delta), *said)


def record_events(
    events: dict[int, FrameEvents], fps: float = FPS
) -> tuple[tuple[Turn, ...], tuple[TimedTransition, ...]]:
    """The inverse of `place`: turns in source order and transitions, with times that `place` maps back.

    This is how a recorded live session becomes a record to train or score on.
    """
    turns: list[Turn] = []
    transitions: list[TimedTransition] = []
    for frame in sorted(events):
        turns += [Turn(role="user", time=frame / fps, text=text) for text in events[frame].user]
        decided = decision_time(frame, fps)
        transitions += _ordered(events[frame].delta, decided)
        if (utterance := events[frame].utterance) is not None:
            turns.append(Turn(role="assistant", time=decided, text=utterance, labels=events[frame].labels))
    return tuple(turns), tuple(transitions)


def _ordered(delta: Delta, time: float) -> list[TimedTransition]:
    """Equal times sort by step, so a transition that precedes a lower one is told apart by a millisecond."""
    timed: list[TimedTransition] = []
    previous: Transition | None = None
    for transition in delta:
        if previous is not None and transition < previous:
            time += 1e-3
        timed.append(TimedTransition(time=time, step=transition.step, kind=transition.kind))
        previous = transition
    return timed
