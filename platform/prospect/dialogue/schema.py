"""The validated records of all sources: a `Dialogue` is one conversation about one video.

Times are seconds of the video's own clock, whose zero is the first picture. Nothing here knows frames
(timeline.py) or tokens (sequence.py).
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

Role = Literal["user", "assistant"]
TransitionKind = Literal["start", "complete"]
Text = Annotated[str, Field(min_length=1)]
AnyText = Annotated[str, Field(max_length=1 << 30)]
"""Text that can be written: pydantic refuses half an emoji (a lone surrogate) only where it checks a length."""
Id = Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]
"""A name that files may write as a number."""


class Record(BaseModel):
    """Base of all records: unknown fields are refused, so that misspelt ones are noticed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Turn(Record):
    """One utterance."""

    role: Role
    time: Annotated[FiniteFloat, Field(ge=0)]
    text: Text
    labels: AnyText = ""
    progress: AnyText | None = None
    """On assistant turns: summary of the progress including this turn, if the source has one."""


class Step(Record):
    """One step of the recipe and, where it was performed and annotated, its span.

    `performed=False` (CaptainCook4D writes times of -1) means no transitions; `start=None` with `performed=True`
    means that its times are unknown.
    """

    id: str
    name: Text
    start: Annotated[FiniteFloat, Field(ge=0)] | None = None
    end: Annotated[FiniteFloat, Field(ge=0)] | None = None
    performed: bool = True
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    source: AnyText = ""

    @model_validator(mode="after")
    def _span(self) -> Self:
        if (self.start is None) != (self.end is None):
            raise ValueError(f"step {self.id}: start and end must be given together")
        if self.start is not None and self.end is not None and self.end < self.start:
            raise ValueError(f"step {self.id}: end {self.end} lies before start {self.start}")
        if not self.performed and self.start is not None:
            raise ValueError(f"step {self.id}: not performed, so it has no start and no end")
        return self


class Annotation(Record):
    """One timed line that annotators wrote while they watched, which labelling maps to a step.

    `end=None` is a point: only its start is known.
    """

    start: Annotated[FiniteFloat, Field(ge=0)]
    end: Annotated[FiniteFloat, Field(ge=0)] | None = None
    text: Text
    depth: Annotated[int, Field(ge=0)] = 0
    """0: a line of the top level; 1: a part of the previous line of depth 0."""
    mistake: AnyText = ""
    """What went wrong, if the annotator marked a mistake."""

    @model_validator(mode="after")
    def _span(self) -> Self:
        if self.end is not None and self.end < self.start:
            raise ValueError(f"annotation {self.text!r}: end {self.end} lies before start {self.start}")
        return self


class TimedTransition(Record):
    """A change of one step's state at a moment."""

    time: Annotated[FiniteFloat, Field(ge=0)]
    step: Annotated[int, Field(ge=0)]
    """Index into the recipe, from 0."""
    kind: TransitionKind


class Dialogue(Record):
    """One conversation about one video, with the recipe and what happened when.

    Raises (on construction):
        pydantic.ValidationError: naming the field; steps must be S1..SK in order, and explicit
            transitions must name one of them.
    """

    dataset: Id
    video_id: Id
    dialogue_id: Id
    user_type: AnyText = ""
    split: AnyText = ""
    goal: AnyText = ""
    knowledge: AnyText = ""
    steps: tuple[Step, ...] = ()
    turns: tuple[Turn, ...] = ()
    annotations: tuple[Annotation, ...] = ()
    """Timed lines in the order of their start, from which labelling times the steps."""
    explicit_transitions: tuple[TimedTransition, ...] | None = None
    """For sources that state transitions (DST_UPDATE turns, a recorded session) instead of spans."""
    duration: Annotated[FiniteFloat, Field(gt=0)] | None = None
    video_start: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    """Where the source counts time from (Assembly101's `video_start_time`): the end is `video_start + duration`."""
    first_frame: Annotated[int, Field(ge=0)] | None = None
    """First frame of the record; None: the video's first."""
    last_frame: Annotated[int, Field(gt=0)] | None = None
    """One past the last frame of the record; None: the video's end."""
    progress: AnyText | None = None
    """Summary of the progress before the first frame, if the record is a later part of a dialogue."""
    summary: AnyText | None = None
    """The summary of progress behind the last frame, if the source has one."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        expected = [f"S{number}" for number in range(1, len(self.steps) + 1)]
        if [step.id for step in self.steps] != expected:
            raise ValueError(f"steps: ids must be {expected[:3]}... in order, got {[s.id for s in self.steps][:3]}")
        for transition in self.explicit_transitions or ():
            if transition.step >= len(self.steps):
                raise ValueError(f"transitions: step {transition.step} of a recipe of {len(self.steps)} steps")
        return self

    @property
    def end(self) -> float | None:
        """End of the video in the source's own clock, if the source states it."""
        return None if self.duration is None else self.video_start + self.duration

    @property
    def step_names(self) -> tuple[str, ...]:
        return tuple(step.name for step in self.steps)

    @property
    def has_dst_labels(self) -> bool:
        """Whether the times of steps are known; false for an empty recipe."""
        timed = self.explicit_transitions is not None or any(step.start is not None for step in self.steps)
        return timed and bool(self.steps)

    @property
    def summary_only(self) -> bool:
        """Whether the record serves for its summary alone: it has no assistant turns."""
        return self.summary is not None and not any(turn.role == "assistant" for turn in self.turns)

    def transitions(self) -> tuple[TimedTransition, ...]:
        """All transitions, ordered by time, then step, then `start` before `complete`."""
        found = self.explicit_transitions
        if found is None:
            found = tuple(
                TimedTransition(time=time, step=index, kind=kind)
                for index, step in enumerate(self.steps)
                if step.start is not None and step.end is not None
                for time, kind in ((step.start, "start"), (step.end, "complete"))
            )
        return tuple(sorted(found, key=lambda t: (t.time, t.step, t.kind != "start")))
