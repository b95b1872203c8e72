"""Canonical JSON lines: one video a line with timed steps and turns, times in seconds.

{"dataset", "video_id", "goal", "duration", "steps": [{"start", "end", "text", "substeps": [{"start", "end", "text"}]}],
 "turns": [{"time" or "start", "role", "text"}], "annotations": [{"start", "end", "text"}]}

Common synonyms of these names are read too (docs/data.md).
"""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AliasChoices, Field, FiniteFloat, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from prospect.data.sources.annotations import in_order
from prospect.data.sources.base import Duration, End, OneLine, Raw, Reader, SourceRecord, Time, Trimmed
from prospect.data.sources.fields import fields_of
from prospect.dialogue.schema import Annotation, AnyText, Dialogue, Id, Role, Step, Turn

_TEXT = AliasChoices("text", "name", "description", "step", "narration")
_START = AliasChoices("start", "start_time", "start_ts")
_END = AliasChoices("end", "end_time", "end_ts")
_SKIPPED = -1.0


class StepError(SourceRecord):
    """CaptainCook4D: what went wrong in a step."""

    tag: AnyText = ""


class Line(SourceRecord):
    """A timed line of an annotator, or a part of a step (GoalStep)."""

    text: OneLine = Field(validation_alias=_TEXT)
    start: Time = Field(validation_alias=_START)
    end: End | None = Field(default=None, validation_alias=_END)

    def annotation(self, depth: int = 0, mistake: str = "") -> Annotation:
        return Annotation(start=self.start, end=self.end, text=self.text, depth=depth, mistake=mistake)


class AnnotationLine(Line):
    """A timed line with its parts."""

    mistake: AnyText = ""
    substeps: tuple[Line, ...] = ()

    def lines(self) -> Iterator[Annotation]:
        yield self.annotation(mistake=self.mistake)
        yield from (part.annotation(depth=1) for part in self.substeps)


class CanonicalStep(SourceRecord):
    """One step; CaptainCook4D writes times of -1, or the tag `Missing Step`, where it was skipped."""

    text: OneLine = Field(validation_alias=_TEXT)
    performed: Any = None
    """False: skipped. CaptainCook4D describes here in words how the step was performed."""
    errors: tuple[StepError, ...] = ()
    start: Annotated[FiniteFloat, Field(ge=_SKIPPED)] | None = Field(default=None, validation_alias=_START)
    end: FiniteFloat | None = Field(default=None, validation_alias=_END, validate_default=True)
    substeps: tuple[Line, ...] = ()

    @field_validator("end")
    @classmethod
    def _span(cls, end: float | None, info: ValidationInfo) -> float | None:
        if "start" not in info.data or info.data.get("performed") is False:
            return end
        start = info.data["start"]
        if (start is None) != (end is None):
            raise PydanticCustomError("alone", "must be given together with start")
        if end is not None and not (start == end == _SKIPPED):
            if start < 0:
                raise PydanticCustomError("negative", "must be -1 like start, where the step was skipped")
            if end < start:
                raise PydanticCustomError("reversed", "must not lie before start ({start} s)", {"start": start})
        return end

    @property
    def skipped(self) -> bool:
        tagged = any(error.tag == "Missing Step" for error in self.errors)
        return self.performed is False or tagged or self.start == self.end == _SKIPPED

    def step(self, number: int) -> Step:
        identity = {"id": f"S{number}", "name": self.text, "source": "annotation"}
        if self.skipped:
            return Step(**identity, performed=False)
        return Step(**identity, start=self.start, end=self.end)

    def lines(self) -> Iterator[Annotation]:
        """The step and its parts as annotation lines, from which labelling can time it."""
        if self.start is not None and self.start >= 0:
            yield Annotation(start=self.start, end=self.end, text=self.text)
            yield from (part.annotation(depth=1) for part in self.substeps)


class CanonicalTurn(SourceRecord):
    """One utterance; HoloAssist calls its time `start` and labels it with `initiative` and `purpose`."""

    role: Role = Field(validation_alias=AliasChoices("role", "speaker"))
    time: Time = Field(validation_alias=AliasChoices("time", "start", "start_time", "timestamp"))
    text: Trimmed = Field(validation_alias=AliasChoices("text", "content", "utterance"))
    labels: AnyText = ""
    initiative: AnyText = ""
    purpose: AnyText = ""

    def turn(self) -> Turn:
        labels = self.labels or "|".join(filter(None, (self.initiative, self.purpose)))
        return Turn(role=self.role, time=self.time, text=self.text, labels=labels)


class CanonicalRecord(SourceRecord):
    """One line."""

    dataset: Id
    video_id: Id = Field(validation_alias=AliasChoices("video_id", "video_uid", "video"))
    dialogue_id: Id = "main"
    user_type: AnyText = ""
    split: AnyText = ""
    goal: AnyText | None = Field(default=None, validation_alias=AliasChoices("goal", "task"))
    knowledge: AnyText = Field(default="", validation_alias=AliasChoices("knowledge", "recipe"))
    duration: Duration | None = None
    steps: tuple[CanonicalStep, ...] = ()
    turns: tuple[CanonicalTurn, ...] = Field(
        default=(), validation_alias=AliasChoices("turns", "dialogue", "conversation", "utterances")
    )
    lines: tuple[AnnotationLine, ...] = Field(default=(), validation_alias="annotations")

    def annotations(self) -> tuple[Annotation, ...]:
        """The annotators' lines, or those of steps with parts; without parts the steps' own times say the same."""
        if self.lines:
            return in_order(line for group in self.lines for line in group.lines())
        if not any(step.substeps for step in self.steps):
            return ()
        return in_order(line for step in self.steps for line in step.lines())

    def dialogue(self) -> Dialogue:
        return Dialogue(
            **self.model_dump(exclude={"goal", "steps", "turns", "lines"}),
            goal=self.goal or "",
            steps=tuple(step.step(number) for number, step in enumerate(self.steps, 1)),
            turns=tuple(turn.turn() for turn in self.turns),
            annotations=self.annotations(),
        )


FIELDS = fields_of(CanonicalRecord)


def convert(raw: Raw) -> Dialogue:
    """One line; its steps become S1..SK in the order of the file, which is the recipe's."""
    return CanonicalRecord.model_validate(raw).dialogue()


READER = Reader(patterns=("*.jsonl", "*.jsonl.gz"), fields=FIELDS, convert=convert)
