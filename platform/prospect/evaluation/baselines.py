"""Baselines that watch nothing: floors and ceilings to compare a trained model with.

A baseline takes the reference (`Dialogue`, `Timeline`) and gives `VideoDecisions`, scored like a model's.
`Periodic` and `TimePrior` learn from the training split and look at the reference only for the recipe and
the video's length; the others know more than a model could, or nothing at all.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from prospect.dialogue.schema import Dialogue
from prospect.dialogue.state import Delta, StatePolicy, TaskState
from prospect.dialogue.timeline import Timeline
from prospect.evaluation.records import Placed, VideoDecisions, legal_deltas, scored_frames
from prospect.streaming.types import Decision


def silence(dialogue: Dialogue, timeline: Timeline) -> VideoDecisions:
    """Never speaks and never leaves the initial state."""
    return _decided(dialogue, timeline, {}, {})


def oracle(dialogue: Dialogue, timeline: Timeline, policy: StatePolicy = "strict") -> VideoDecisions:
    """The reference itself: every utterance and legal transition at its own frame."""
    return oracle_shifted(dialogue, timeline, 0, policy)


def oracle_shifted(
    dialogue: Dialogue, timeline: Timeline, frames: int = 1, policy: StatePolicy = "strict"
) -> VideoDecisions:
    """The reference `frames` frames late (early where negative); what leaves the video is never said."""
    utterances = {frame + frames: text for frame, text in _reference_utterances(timeline).items()}
    deltas = {frame + frames: delta for frame, delta in legal_deltas(timeline, policy).items()}
    return _decided(dialogue, timeline, utterances, deltas)


def right_time_wrong_step(dialogue: Dialogue, timeline: Timeline) -> VideoDecisions:
    """Speaks whenever the reference does, with the words that it has for another step.

    A reference utterance is replaced by the next one of the same dialogue (the last is followed by the
    first) that has other words and, where there is a recipe, another task state; failing that, by the name
    of a step that is not in its words. Where there is neither, nothing is said. The state stays initial.
    """
    utterances = _reference_utterances(timeline)
    states = timeline.states()
    frames = list(utterances)
    wrong = {}
    for index, frame in enumerate(frames):
        others = [other for other in frames[index + 1 :] + frames[:index] if utterances[other] != utterances[frame]]
        texts = [utterances[other] for other in others if not dialogue.steps or states[other] != states[frame]]
        texts += [name for name in dialogue.step_names if name.lower() not in utterances[frame].lower()]
        if texts:
            wrong[frame] = texts[0]
    return _decided(dialogue, timeline, wrong, {})


@dataclass(frozen=True)
class Periodic:
    """Says the name of the next recipe step at the mean training interval, until the recipe ends.

    The state stays initial.
    """

    first: float
    """Mean frame of a dialogue's first utterance, from the dialogue's own first frame on."""
    interval: float
    """Mean frames between one utterance and the next."""

    @classmethod
    def fit(cls, training: Iterable[Placed]) -> "Periodic":
        """From references; without any talk in them it speaks first at frame 0, then every 10 seconds."""
        spoken = [_spoken_frames(*reference) for reference in training]
        firsts = [frames[0] for frames in spoken if frames]
        gaps = [later - earlier for frames in spoken for earlier, later in pairwise(frames)]
        return cls(_mean(firsts, 0.0), _mean(gaps, 20.0))

    def __call__(self, dialogue: Dialogue, timeline: Timeline) -> VideoDecisions:
        start = scored_frames(dialogue, timeline).start
        times = [start + round(self.first + number * self.interval) for number in range(len(dialogue.steps))]
        return _decided(dialogue, timeline, dict(zip(times, dialogue.step_names, strict=True)), {})


@dataclass(frozen=True)
class TimePrior:
    """The most frequent whole state of training videos at the same share of the video, and no words.

    Whole states, because joint goal accuracy asks for them; by share, because that tells more than the clock
    does (it knows the video's length, which no live model does): the strongest guess that time alone allows.
    Recipes of a length that training never saw keep the initial state.
    """

    states: Mapping[tuple[int, int], TaskState]
    """By (number of steps, bin)."""
    bins: int

    @classmethod
    def fit(cls, training: Iterable[Timeline], bins: int = 50, policy: StatePolicy = "strict") -> "TimePrior":
        """From reference timelines, every frame counting once."""
        seen: dict[tuple[int, int], Counter[TaskState]] = defaultdict(Counter)
        for timeline in training:
            for frame, state in enumerate(timeline.states(policy)):
                seen[timeline.num_steps, frame * bins // timeline.num_frames][state] += 1
        return cls({key: counter.most_common(1)[0][0] for key, counter in seen.items()}, bins)

    def __call__(self, dialogue: Dialogue, timeline: Timeline) -> VideoDecisions:
        initial = TaskState.initial(timeline.num_steps)
        span = scored_frames(dialogue, timeline)
        decisions, previous = [], initial
        for frame in span:
            key = (timeline.num_steps, frame * self.bins // timeline.num_frames)
            state = self.states.get(key, previous)
            decisions.append(_decision(frame - span.start, state))
            previous = state
        return VideoDecisions(dialogue, timeline, decisions, span.start)


def _reference_utterances(timeline: Timeline) -> dict[int, str]:
    """Assistant turns by frame, in order."""
    said = ((frame, timeline[frame].utterance) for frame in sorted(timeline.events))
    return {frame: text for frame, text in said if text is not None}


def _spoken_frames(dialogue: Dialogue, timeline: Timeline) -> list[int]:
    """Frames of the reference's utterances, counted from the dialogue's first."""
    span = scored_frames(dialogue, timeline)
    return [frame - span.start for frame in _reference_utterances(timeline) if frame in span]


def _decided(
    dialogue: Dialogue, timeline: Timeline, utterances: Mapping[int, str], deltas: Mapping[int, Delta]
) -> VideoDecisions:
    """Decisions for all frames in use, the state by replay of `deltas`; frames are those of the video."""
    span = scored_frames(dialogue, timeline)
    state = TaskState.initial(timeline.num_steps)
    for frame in sorted(frame for frame in deltas if frame < span.start):
        state, _ = state.apply(deltas[frame], "implied_start")
    decisions = []
    for frame in span:
        delta = deltas.get(frame, ())
        state, _ = state.apply(delta, "implied_start")
        decisions.append(_decision(frame - span.start, state, delta, utterances.get(frame)))
    return VideoDecisions(dialogue, timeline, decisions, span.start)


def _decision(frame: int, state: TaskState, delta: Delta = (), utterance: str | None = None) -> Decision:
    return Decision(
        frame=frame,
        p_speak=float(utterance is not None),
        p_update=float(bool(delta)),
        state=state,
        delta=delta,
        utterance=utterance,
        readout=state if len(state) else None,
    )


def _mean(values: Sequence[int], default: float) -> float:
    return sum(values) / len(values) if values else default
