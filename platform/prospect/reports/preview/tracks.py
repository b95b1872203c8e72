"""A labelled dialogue as what a time axis shows: events at their frames, step bars, annotation lines, clips.

Positions are shares of the axis, whose length is the video's: 0 is the first picture, 1 the end of frame T - 1.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from prospect.data.clips import Clip
from prospect.dialogue.schema import Annotation, Dialogue, Role, Step
from prospect.dialogue.state import StatePolicy, StepState, TaskState, Transition
from prospect.dialogue.timeline import FPS, Timeline, decision_time

EventKind = Literal["user", "assistant", "start", "complete", "left out"]

MAX_LANES = 4
"""Rows that overlapping annotation lines of one depth may take."""

SHOWN_STATES = 12
"""Most steps of a state that are written out; longer ones become numbers."""

OVERVIEW = 4
"""Of so many pictures or ticks one is shown while the whole video fits into the window."""

_TICKS_S = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)
_MOST_TICKS = 14

_SIGNS = {StepState.NOT_STARTED: "\N{MIDDLE DOT}", StepState.IN_PROGRESS: "\N{BLACK RIGHT-POINTING SMALL TRIANGLE}"}
_SIGNS[StepState.COMPLETED] = "\N{CHECK MARK}"


@dataclass(frozen=True)
class TrackMark:
    """One turn or transition, placed or left out of the timeline."""

    kind: EventKind
    text: str
    frame: int | None = None
    """Where it stands (user) or is decided; None: it has no frame."""
    time: float | None = None
    """Seconds: when the frame begins (user) or is decided."""
    step: int | None = None
    state: str = ""
    """The task's state after a transition."""
    reason: str = ""
    """Why the event does not count: it is illegal, or has no place in the video."""

    def share(self, total_frames: int) -> float:
        """Where it stands on the axis: a user turn where its frame begins, all else where its frame is decided."""
        return 0.0 if self.time is None else self.time * FPS / total_frames


@dataclass(frozen=True)
class Box:
    """A labelled span of the axis."""

    left: float
    width: float
    text: str
    detail: str = ""
    lane: int = 0


@dataclass(frozen=True)
class StepRow:
    """One step: its bar, if anybody knows when it happened, and from when on it counts as completed."""

    step: Step
    bar: Box | None
    completed: float | None
    events: tuple[int, ...]
    """Indices of its transitions among the dialogue's events."""

    @property
    def note(self) -> str:
        """Reason why the step has no bar."""
        return "" if self.bar else "no times known" if self.step.performed else "not performed"

    @property
    def opacity(self) -> float:
        """A bar of confidence 0 stays visible."""
        return 1.0 if self.step.confidence is None else 0.25 + 0.75 * self.step.confidence


def clock(seconds: float) -> str:
    """`1:04`, `1:04.5`, `2:01:04`; tenths where there are any."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{hours}:{minutes:02d}:{text}" if hours else f"{minutes}:{text}"


def axis_ticks(duration: float) -> list[tuple[int, float]]:
    """(level, seconds): level 0 fits into the window, each further one is for four times the magnification."""
    levels: dict[float, int] = {}
    for level in (3, 2, 1, 0):
        most = _MOST_TICKS * OVERVIEW**level
        every = next((s for s in _TICKS_S if duration / s <= most), _TICKS_S[-1])
        levels |= {number * every: level for number in range(math.floor(duration / every) + 1)}
    return sorted((level, seconds) for seconds, level in levels.items())


def max_zoom(num_frames: int) -> int:
    """The power of two at which a frame is wide enough to read its events."""
    return 2 ** max(2, math.ceil(math.log2(max(1.0, num_frames / 40))))


def events_of(dialogue: Dialogue, timeline: Timeline, policy: StatePolicy = "strict") -> list[TrackMark]:
    """Every turn and transition once: by frame in the order of the grammar, then what has no frame."""
    state, found = TaskState.initial(timeline.num_steps), []
    for frame in sorted(timeline.events):
        happens = timeline[frame]
        found += [TrackMark("user", text, frame, frame / FPS) for text in happens.user]
        for transition in happens.delta:
            before = state
            state, refused = before.apply((transition,), policy)
            reason = illegal_reason(before, transition) if refused else ""
            decided = decision_time(frame)
            told = state_text(state)
            text = f"{transition} ({dialogue.step_names[transition.step]})"
            found.append(TrackMark(transition.kind, text, frame, decided, transition.step, told, reason))
        if happens.utterance is not None:
            found.append(TrackMark("assistant", happens.utterance, frame, decision_time(frame)))
    turns = {f"{turn.role} turn {turn.text!r}": f"{turn.role}: {turn.text}" for turn in dialogue.turns}
    lost = (
        TrackMark("left out", turns.get(event.what, event.what), reason=event.reason) for event in timeline.quarantined
    )
    return [*found, *lost]


def illegal_reason(state: TaskState, transition: Transition) -> str:
    """Reason why `transition` is illegal in `state`."""
    label = state.steps[transition.step].label
    return f"illegal, not applied: S{transition.step + 1} is {label}, so it cannot {transition.kind}"


def state_text(state: TaskState) -> str:
    """Every step with its sign; of a long recipe the numbers and the steps in progress."""
    if len(state) <= SHOWN_STATES:
        return " ".join(f"S{number}{_SIGNS[step]}" for number, step in enumerate(state.steps, 1))
    running = [f"S{number}" for number, step in enumerate(state.steps, 1) if step is StepState.IN_PROGRESS]
    more = f" and {len(running) - SHOWN_STATES} more" if len(running) > SHOWN_STATES else ""
    done = Counter(state.steps)[StepState.COMPLETED]
    return f"{done} of {len(state)} completed; in progress: {', '.join(running[:SHOWN_STATES]) or 'none'}{more}"


def turn_boxes(events: Sequence[TrackMark], role: Role, total_frames: int) -> list[tuple[int, Box]]:
    """(index, box) of the turns of `role`: each has room up to the next one; several of one frame share it."""
    placed = [(index, event) for index, event in enumerate(events) if event.kind == role]
    together = Counter(event.frame for _, event in placed)
    nth: Counter[int | None] = Counter()
    starts = []
    for _, event in placed:
        starts.append(event.share(total_frames) + nth[event.frame] / together[event.frame] / total_frames)
        nth[event.frame] += 1
    return [
        (index, Box(left, right - left, event.text))
        for (index, event), (left, right) in zip(placed, pairwise([*starts, 1.0]), strict=True)
    ]


def step_rows(dialogue: Dialogue, events: Sequence[TrackMark], total_frames: int) -> list[StepRow]:
    """One row a step, in the recipe's order."""
    length = total_frames / FPS
    times = {(change.step, change.kind): change.time for change in reversed(dialogue.transitions())}
    by_step: dict[int, list[int]] = {}
    for index, event in enumerate(events):
        if event.step is not None:
            by_step.setdefault(event.step, []).append(index)
    rows = []
    for number, step in enumerate(dialogue.steps):
        start, end = times.get((number, "start")), times.get((number, "complete"))
        own = by_step.get(number, [])
        done = (events[i].frame for i in own if events[i].kind == "complete" and not events[i].reason)
        frame = next((frame for frame in done if frame is not None), None)
        completed = None if frame is None else (frame + 1) / total_frames
        rows.append(StepRow(step, _bar(step, start, end, length), completed, tuple(own)))
    return rows


def _bar(step: Step, start: float | None, end: float | None, length: float) -> Box | None:
    """A step that only starts or only completes is a point there."""
    if start is None and end is None:
        return None
    first, last = (start, end) if start is not None and end is not None else ((start or end or 0.0),) * 2
    told = " to ".join(clock(time) if time is not None else "?" for time in (start, end))
    sure = "" if step.confidence is None else f"confidence {step.confidence:.2f}"
    left, right = min(first / length, 1.0), min(last / length, 1.0)
    return Box(left, right - left, ", ".join(filter(None, (told, sure, step.source))), step.name)


def annotation_boxes(lines: Iterable[Annotation], depth: int, length: float) -> list[Box]:
    """The lines of one depth; those that overlap stand in different lanes, a point has no width."""
    ends: list[float] = []
    boxes = []
    for line in lines:
        if min(line.depth, 1) != depth:
            continue
        end = line.start if line.end is None else line.end
        lane = next((lane for lane, until in enumerate(ends) if until <= line.start), len(ends))
        lane = min(lane, MAX_LANES - 1)
        ends[lane : lane + 1] = [end]
        left = min(line.start / length, 1.0)
        detail = clock(line.start) + (f" to {clock(line.end)}" if line.end is not None else "")
        text = line.text + (f" (mistake: {line.mistake})" if line.mistake else "")
        boxes.append(Box(left, min(end / length, 1.0) - left, text, detail, lane))
    return boxes


def clip_boxes(clips: Iterable[Clip], total_frames: int) -> list[tuple[Box, float]]:
    """(box of the decided frames, width of the tail of undecided frames before it) of every clip."""
    boxes = []
    for number, clip in enumerate(clips, 1):
        span = f"frames {clip.start} to {clip.stop - 1}, {clock(clip.start / FPS)} to {clock(clip.stop / FPS)}"
        box = Box(clip.start / total_frames, len(clip) / total_frames, f"clip {number}", span)
        boxes.append((box, clip.tail_frames / total_frames))
    return boxes
