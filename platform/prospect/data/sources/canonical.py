"""Canonical JSON lines: one video a line with timed steps and turns, times in seconds.

{"dataset", "video_id", "goal", "duration", "steps": [{"start", "end", "text", "substeps": [{"start", "end", "text"}]}],
 "turns": [{"time" or "start", "role", "text"}]}
"""

from collections.abc import Iterator
from typing import Any

from pydantic import AliasChoices, Field, FiniteFloat

from prospect.data.sources.annotations import in_order
from prospect.data.sources.base import OneLine, Raw, Reader, SourceRecord, Trimmed
from prospect.dialogue.schema import Annotation, Dialogue, Role, Step, Turn


class StepError(SourceRecord):
    """CaptainCook4D: what went wrong in a step."""

    tag: str = ""


class Substep(SourceRecord):
    """GoalStep: a part of a step, as the annotator timed it."""

    text: OneLine
    start: FiniteFloat
    end: FiniteFloat | None = None


class CanonicalStep(SourceRecord):
    """One step; CaptainCook4D writes times of -1, or the tag `Missing Step`, where it was skipped."""

    text: OneLine
    start: FiniteFloat | None = None
    end: FiniteFloat | None = None
    performed: Any = None
    """False: skipped. CaptainCook4D describes here in words how the step was performed."""
    errors: tuple[StepError, ...] = ()
    substeps: tuple[Substep, ...] = ()

    def step(self, number: int) -> Step:
        identity = {"id": f"S{number}", "name": self.text, "source": "annotation"}
        skipped = self.start == -1 and self.end == -1
        if skipped or self.performed is False or any(error.tag == "Missing Step" for error in self.errors):
            return Step(**identity, performed=False)
        return Step(**identity, start=self.start, end=self.end)

    def lines(self) -> Iterator[Annotation]:
        """The step and its parts as annotation lines, from which labelling can time it."""
        if self.start is not None and self.start >= 0:
            yield Annotation(start=self.start, end=self.end, text=self.text)
            for part in self.substeps:
                yield Annotation(start=part.start, end=part.end, text=part.text, depth=1)


class CanonicalTurn(SourceRecord):
    """One utterance; HoloAssist calls its time `start` and labels it with `initiative` and `purpose`."""

    role: Role
    time: FiniteFloat = Field(validation_alias=AliasChoices("time", "start"))
    text: Trimmed
    labels: str = ""
    initiative: str = ""
    purpose: str = ""

    def turn(self) -> Turn:
        labels = self.labels or "|".join(filter(None, (self.initiative, self.purpose)))
        return Turn(role=self.role, time=self.time, text=self.text, labels=labels)


class CanonicalRecord(SourceRecord):
    """One line."""

    dataset: str
    video_id: str
    dialogue_id: str = "main"
    user_type: str = ""
    split: str = ""
    goal: str | None = None
    knowledge: str = ""
    duration: FiniteFloat | None = None
    steps: tuple[CanonicalStep, ...] = ()
    turns: tuple[CanonicalTurn, ...] = ()

    def annotations(self) -> tuple[Annotation, ...]:
        """Annotation lines of steps with parts; without parts the steps' own times say the same."""
        if not any(step.substeps for step in self.steps):
            return ()
        return in_order(line for step in self.steps for line in step.lines())

    def dialogue(self) -> Dialogue:
        return Dialogue(
            **self.model_dump(exclude={"goal", "steps", "turns"}),
            goal=self.goal or "",
            steps=tuple(step.step(number) for number, step in enumerate(self.steps, 1)),
            turns=tuple(turn.turn() for turn in self.turns),
            annotations=self.annotations(),
        )


def convert(raw: Raw) -> Dialogue:
    """One line; its steps become S1..SK in the order of the file, which is the recipe's."""
    return CanonicalRecord.model_validate(raw).dialogue()


READER = Reader(patterns=("*.jsonl", "*.jsonl.gz"), convert=convert)
