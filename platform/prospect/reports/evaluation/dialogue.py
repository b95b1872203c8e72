"""One streamed dialogue beside its reference, as its time axis shows it: turns, states, scores, delays, refreshes.

Positions are shares of the axis, which covers the scored frames: 0 is where the first begins, 1 where the last ends.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from prospect.dialogue.state import StatePolicy, StepState, TaskState, Transition
from prospect.dialogue.timeline import FPS, decision_time
from prospect.evaluation.events import match_events
from prospect.evaluation.measures.turns import match_video, said
from prospect.evaluation.records import TimedEvent, VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from prospect.reports.preview.tracks import Box, axis_ticks, clock, max_zoom
from prospect.similarity import SentenceEncoder

Side = Literal["user", "reference", "prediction", "refresh"]

Verdict = Literal["", "match", "other words", "miss", "redundant"]
"""Result of a turn or transition: paired; paired, but less similar than the threshold asks; without a partner."""

MAX_POINTS = 800
"""Of a score curve; of more frames, each point is the highest of several."""

_SIDES: dict[Side, int] = {"refresh": 0, "user": 1, "reference": 2, "prediction": 3}


@dataclass(frozen=True)
class Event:
    """A turn, a transition or a refresh."""

    side: Side
    kind: Literal["turn", "step", "refresh"]
    frame: int
    """Of the video."""
    text: str
    verdict: Verdict = ""
    delay: float | None = None
    """Seconds from the reference to the prediction it is paired with; negative: the prediction came first."""
    similarity: float | None = None
    transition: Transition | None = None

    @property
    def time(self) -> float:
        """Seconds: when the frame begins (user, refresh) or is decided."""
        return self.frame / FPS if self.side in ("user", "refresh") else decision_time(self.frame)


@dataclass(frozen=True)
class Segment:
    """A stretch of one step's state."""

    left: float
    width: float
    state: str
    event: int | None
    """Index of the transition that begins it, among the dialogue's events."""


@dataclass(frozen=True)
class StepBars:
    """The states of one step over time, reference over prediction."""

    name: str
    reference: list[Segment]
    prediction: list[Segment]
    right: float | None
    """Share of frames in the reference's state; None where the reference is unknown."""


@dataclass(frozen=True)
class ScoreCurve:
    """A head's probability over time."""

    name: str
    points: str
    """Of an SVG polyline in a box of [0, 1000] x [0, 100], 0 at the top."""
    threshold: float | None
    due: list[float]
    """Where the reference asks for it."""


@dataclass(frozen=True)
class Picture:
    """The picture of a frame."""

    frame: int
    uri: str
    left: float
    width: float
    """0: shown only when asked for."""


@dataclass
class DialogueTimeline:
    """Content of the page on one dialogue."""

    video_id: str
    name: str
    goal: str
    span: range
    scores: Mapping[str, float | None]
    events: list[Event]
    steps: list[StepBars]
    curves: list[ScoreCurve]
    delays: list[tuple[int, Box]]
    """(index of the prediction among the events, box from the reference to it); lane 0 turns, lane 1 transitions."""
    pictures: list[Picture] = field(default_factory=list)
    no_pictures: str = ""
    """Reason why there are none."""

    @property
    def ticks(self) -> list[tuple[int, float, float]]:
        """(level, share, seconds of the video), as `axis_ticks`."""
        length = len(self.span) / FPS
        return [(level, at / length, at + self.span.start / FPS) for level, at in axis_ticks(length) if at < length]

    @property
    def max_zoom(self) -> int:
        return max_zoom(len(self.span))

    def share(self, event: Event) -> float:
        return min(max((event.time * FPS - self.span.start) / len(self.span), 0.0), 1.0)

    def turns(self, side: Side) -> list[tuple[int, Box]]:
        """(index, box) of one side's turns, each with room up to the next."""
        placed = [(i, e) for i, e in enumerate(self.events) if e.side == side and e.kind == "turn"]
        starts = [self.share(event) for _, event in placed]
        ends = [*starts, 1.0][1:]
        return [(i, Box(a, max(b - a, 0.0), e.text)) for (i, e), a, b in zip(placed, starts, ends, strict=True)]

    def count(self, side: Side, kind: str, *verdicts: Verdict) -> int:
        return sum((e.side, e.kind) == (side, kind) and e.verdict in verdicts for e in self.events)


def dialogue_timeline(
    video: VideoDecisions,
    scores: Mapping[str, float | None],
    settings: EvaluationSettings,
    encoder: SentenceEncoder | None,
    thresholds: Mapping[str, float] | None = None,
) -> DialogueTimeline:
    """The timeline of one streamed dialogue.

    Args:
        video: the decisions beside the reference.
        scores: of this dialogue, by the metrics' names.
        settings: how turns and transitions are matched.
        encoder: sentence vectors for the turn matcher, as in `evaluate`.
        thresholds: `speak` and `update` in force.

    Raises:
        DataError: utterances must be matched, and `encoder` is missing.
    """
    span, dialogue = video.frames, video.dialogue
    turns = _turn_events(video, settings, encoder)
    steps = _step_events(video, settings)
    refreshes = (
        Event("refresh", "refresh", video.first_frame + one.frame, f"context {one.tokens_before} to {one.tokens_after} "
              "tokens" + (f"; summary: {one.summary}" if one.summary else ""))
        for one in video.refreshes
    )  # fmt: skip
    events = sorted([*turns, *steps, *refreshes], key=lambda e: (e.time, e.kind != "refresh", _SIDES[e.side], e.kind))
    timeline = DialogueTimeline(
        video_id=dialogue.video_id,
        name=name_of(video),
        goal=dialogue.goal,
        span=span,
        scores=scores,
        events=events,
        steps=_step_bars(video, settings.state_policy, events),
        curves=_score_curves(video, settings.state_policy, thresholds or {}),
        delays=[],
    )
    timeline.delays = _delays(timeline)
    return timeline


def name_of(video: VideoDecisions) -> str:
    """Data set, video, dialogue and user type, without repetition."""
    dialogue = video.dialogue
    own = "" if dialogue.dialogue_id == dialogue.video_id else dialogue.dialogue_id
    user_type = "" if dialogue.user_type in own else dialogue.user_type
    return ", ".join(filter(None, (video.video, own, user_type)))


def _turn_events(
    video: VideoDecisions, settings: EvaluationSettings, encoder: SentenceEncoder | None
) -> Iterable[Event]:
    spoken, due = said(video, settings), video.reference_utterances
    matches = match_video(video, settings, encoder)
    for frame in video.frames:
        yield from (Event("user", "turn", frame, text) for text in video.timeline[frame].user)
    for pair in matches.matched:
        verdict: Verdict = "match" if pair.similarity > settings.similarity_threshold else "other words"
        delay = (pair.generated - pair.reference) / FPS
        yield Event("reference", "turn", pair.reference, due[pair.reference], verdict, delay, pair.similarity)
        yield Event("prediction", "turn", pair.generated, spoken[pair.generated], verdict, delay, pair.similarity)
    yield from (Event("reference", "turn", frame, due[frame], "miss") for frame in matches.missed)
    yield from (Event("prediction", "turn", frame, spoken[frame], "redundant") for frame in matches.redundant)


def _step_events(video: VideoDecisions, settings: EvaluationSettings) -> Iterable[Event]:
    decided, due = video.events(), video.reference_events(settings.state_policy)
    for transition in sorted({transition for _, transition in [*decided, *due]}):
        found, asked = _frames(decided, transition), _frames(due, transition)
        both = [(frame, transition) for frame in found], [(frame, transition) for frame in asked]
        pairs = match_events(*both, settings.event_tolerance * FPS)
        text = f"{transition} ({_step_name(video, transition)})"
        waited = {due_at: (decided_at - due_at) / FPS for decided_at, due_at in pairs}
        late = {decided_at: (decided_at - due_at) / FPS for decided_at, due_at in pairs}
        sides: list[tuple[Side, list[int], dict[int, float], Verdict]]
        sides = [("reference", asked, waited, "miss"), ("prediction", found, late, "redundant")]
        for side, frames, delays, lone in sides:
            for frame in frames:
                verdict: Verdict = "match" if frame in delays else lone
                yield Event(side, "step", frame, text, verdict, delays.get(frame), transition=transition)


def _frames(events: Sequence[TimedEvent], transition: Transition) -> list[int]:
    return [frame for frame, each in events if each == transition]


def _step_name(video: VideoDecisions, transition: Transition) -> str:
    names = video.dialogue.step_names
    return names[transition.step] if transition.step < len(names) else "unknown step"


def _step_bars(video: VideoDecisions, policy: StatePolicy, events: Sequence[Event]) -> list[StepBars]:
    """One entry a step; without times of the steps there is no reference."""
    span = video.frames
    known = video.dialogue.has_dst_labels
    reference = video.timeline.states(policy)[span.start : span.stop] if known else []
    decided = {frame: decision.state for frame, decision in video.by_frame.items()}
    predicted = [decided.get(frame) for frame in span]
    bars = []
    for step, name in enumerate(video.dialogue.step_names):
        due, found = (_column(states, step) for states in (reference, predicted))
        begun = {(e.side, e.frame): i for i, e in enumerate(events) if e.transition and e.transition.step == step}
        right = sum(a == b for a, b in zip(due, found, strict=True)) / len(span) if known and len(span) else None
        sides: tuple[Side, Side] = "reference", "prediction"
        left, below = (_segments(c, side, span.start, begun) for c, side in zip((due, found), sides, strict=True))
        bars.append(StepBars(f"S{step + 1} {name}", left, below, right))
    return bars


def _column(states: Sequence[TaskState | None], step: int) -> list[StepState | None]:
    """One step's state by frame; None where no frame was decided, or the tracked state lacks the step."""
    return [None if state is None or step >= len(state) else state.steps[step] for state in states]


def _segments(
    column: Sequence[StepState | None], side: Side, first: int, begun: Mapping[tuple[Side, int], int]
) -> list[Segment]:
    """Stretches of one state; where nothing has started nothing is drawn. A state counts from its frame's end."""
    segments, at = [], 0
    for state, run in groupby(column):
        count = len(list(run))
        if state is not StepState.NOT_STARTED:
            left = min(at + 1, len(column)) if at else 0
            label = "not decided" if state is None else state.label
            width = (min(at + count + 1, len(column)) - left) / len(column)
            segments.append(Segment(left / len(column), width, label, begun.get((side, first + at))))
        at += count
    return segments


def _score_curves(video: VideoDecisions, policy: StatePolicy, thresholds: Mapping[str, float]) -> list[ScoreCurve]:
    span = video.frames
    if not len(span) or not video.decisions:
        return []
    speak = {frame: decision.p_speak for frame, decision in video.by_frame.items()}
    curves = [("speak", speak, sorted(video.reference_utterances))]
    if video.dialogue.steps:
        update = {frame: decision.p_update for frame, decision in video.by_frame.items()}
        curves.append(("update", update, sorted({frame for frame, _ in video.reference_events(policy)})))
    return [
        ScoreCurve(
            f"p_{name}",
            _polyline([probabilities.get(frame, 0.0) for frame in span]),
            thresholds.get(name),
            [(frame + 1 - span.start) / len(span) for frame in due],
        )
        for name, probabilities, due in curves
    ]


def _polyline(values: Sequence[float]) -> str:
    """Points at the frames' ends; of many frames the highest of each group, so that no peak is lost."""
    size = -(-len(values) // MAX_POINTS)
    groups = ((start, values[start : start + size]) for start in range(0, len(values), size))
    points = (((start + len(group)) / len(values), max(group)) for start, group in groups)
    return " ".join(f"{1000 * x:.4g},{100 * (1 - y):.3g}" for x, y in points)


def _delays(timeline: DialogueTimeline) -> list[tuple[int, Box]]:
    boxes = []
    for index, event in enumerate(timeline.events):
        if event.side == "prediction" and event.delay is not None:
            length = event.delay * FPS / len(timeline.span)
            left = timeline.share(event) - max(length, 0)
            boxes.append((index, Box(left, abs(length), signed(event.delay), clock(event.time), event.kind == "step")))
    return boxes


def signed(seconds: float) -> str:
    """`+1.5 s`, `-2 s`, `0 s`."""
    return f"{seconds:+.3g} s" if seconds else "0 s"
