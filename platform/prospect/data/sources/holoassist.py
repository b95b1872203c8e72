"""HoloAssist's own annotations, `data-annotation-trainval-v1_1.json`: a list of videos with their events.

Coarse grained actions are the steps, fine grained ones the lines below them, conversations the turns: the
instructor is the assistant, the student the user.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, FiniteFloat, TypeAdapter, ValidationError

from prospect.data.sources.annotations import in_order
from prospect.data.sources.base import Duration, OneLine, Raw, Reader, SourceRecord, Time, explain
from prospect.data.sources.fields import fields_of
from prospect.data.sources.quarantine import QuarantinedRecord
from prospect.dialogue.schema import Annotation, AnyText, Dialogue, Id, Role, Step, Turn
from prospect.errors import DataError

UNINTELLIGIBLE = "*unintelligible*"
LOW_CONFIDENCE = "low-confidence-transcription"

Word = Annotated[str, BeforeValidator(lambda text: "" if text in (None, "none") else text)]
"""A field of the annotators' form; `none` means empty."""


class Coarse(SourceRecord):
    """What a step is."""

    sentence: OneLine = Field(validation_alias="Action sentence", min_length=1)


class Fine(SourceRecord):
    """What the hands do."""

    verb: Word = Field(default="", validation_alias="Verb")
    adjective: Word = Field(default="", validation_alias="Adjective")
    noun: Word = Field(default="", validation_alias="Noun")
    correctness: str = Field(default="Correct Action", validation_alias="Action Correctness")
    explanation: Word = Field(default="", validation_alias="Incorrect Action Explanation")


class HoloAssistConversation(SourceRecord):
    """What is said, and what for: `instructor-reply-to-student_follow-up instruction`."""

    purpose: str = Field(validation_alias="Conversation Purpose", pattern=r"^(instructor|student)-")
    transcription: Word = Field(default="", validation_alias="Transcription")
    confidence: Word = Field(default="", validation_alias="Transcription Confidence")


class HoloAssistEvent(SourceRecord):
    """What all events have; times in seconds of the video."""

    start: Time
    end: FiniteFloat


class CoarseEvent(HoloAssistEvent):
    label: Literal["Coarse grained action"]
    attributes: Coarse

    def line(self) -> Annotation:
        return Annotation(start=self.start, end=self.end, text=self.attributes.sentence)


class FineEvent(HoloAssistEvent):
    label: Literal["Fine grained action"]
    attributes: Fine

    def line(self) -> Annotation:
        did = self.attributes
        text = " ".join(filter(None, (did.verb, did.adjective, did.noun))).replace("_", " ")
        wrong = did.correctness.lower() != "correct action"
        mistake = (did.explanation or did.correctness) if wrong else ""
        return Annotation(start=self.start, end=self.end, text=text, depth=1, mistake=mistake)


class ConversationEvent(HoloAssistEvent):
    label: Literal["Conversation"]
    attributes: HoloAssistConversation

    def turn(self) -> Turn | None:
        """None where the annotator is not sure what was said."""
        text = self.attributes.transcription.strip()
        if not text or UNINTELLIGIBLE in text or self.attributes.confidence == LOW_CONFIDENCE:
            return None
        speaker, _, purpose = self.attributes.purpose.partition("_")
        role: Role = "user" if speaker.startswith("student") else "assistant"
        initiative = "reply" if "-reply-" in speaker else "start"
        return Turn(role=role, time=self.start, text=text, labels="|".join(filter(None, (initiative, purpose))))


class NarrationEvent(SourceRecord):
    """A summary of the whole video, not an event."""

    label: Literal["Narration"]


_EVENT: TypeAdapter[Any] = TypeAdapter(
    Annotated[CoarseEvent | FineEvent | ConversationEvent | NarrationEvent, Field(discriminator="label")]
)


class StatedDuration(SourceRecord):
    seconds: Duration | None = None


class VideoMetadata(SourceRecord):
    duration: StatedDuration = StatedDuration()


class HoloAssistRecord(SourceRecord):
    """One video."""

    video_name: Id
    goal: AnyText = Field(default="", validation_alias="taskType")
    metadata: VideoMetadata = Field(default=VideoMetadata(), validation_alias="videoMetadata")


def split(element: Raw) -> Iterator[Raw | QuarantinedRecord]:
    """The video with its events as lines, steps and turns; an event that cannot be used is quarantined alone."""
    events = element.get("events")
    if not isinstance(events, list):
        raise DataError("the video has no list of events", field="events")
    steps, lines, turns = [], [], []
    for number, event in enumerate(events):
        try:
            read = _EVENT.validate_python(event)
            if isinstance(read, CoarseEvent):
                steps.append(read.line())
            elif isinstance(read, FineEvent):
                lines.append(read.line())
            elif isinstance(read, ConversationEvent):
                turns.append(read.turn())
        except ValidationError as error:
            field, reason = explain(error, event)
            video = str(element.get("video_name") or "")
            yield QuarantinedRecord("holoassist", video, f"events.{number}.{field}", reason)
    steps.sort(key=lambda step: step.start)
    yield {
        **element,
        "dataset": "holoassist",
        "steps": tuple(
            Step(id=f"S{n}", name=s.text, start=s.start, end=s.end, source="annotation") for n, s in enumerate(steps, 1)
        ),
        "annotations": in_order(_nested(steps, lines)),
        "turns": tuple(turn for turn in turns if turn),
    }


def _nested(steps: list[Annotation], lines: list[Annotation]) -> Iterator[Annotation]:
    """Each fine line behind the last step that starts before it; lines before all steps get depth 0."""
    both = sorted([*steps, *lines], key=lambda line: (line.start, line.depth))
    first = steps[0].start if steps else float("inf")
    for line in both:
        yield line if line.start >= first else line.model_copy(update={"depth": 0})


def convert(raw: Raw) -> Dialogue:
    """One video, which has one dialogue."""
    record = HoloAssistRecord.model_validate(raw)
    return Dialogue(
        dataset="holoassist",
        video_id=record.video_name,
        dialogue_id="main",
        goal=record.goal,
        steps=raw["steps"],
        turns=raw["turns"],
        annotations=raw["annotations"],
        duration=record.metadata.duration.seconds,
    )


FIELDS = fields_of(HoloAssistRecord, events=fields_of(CoarseEvent, FineEvent, ConversationEvent))

READER = Reader(patterns=("*.json",), fields=FIELDS, convert=convert, split=split)
