"""DST records: a `dst` list of timed steps, DST_UPDATE turns inside the conversation, or both.

Only times are read. The turns' `start_frame` is the end of the previous event in many of these files
(a step's completion would be learned when the step starts), so no frame index of a turn is trusted.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from prospect.data.sources.base import OneLine, Raw, Reader, SourceRecord, Time
from prospect.data.sources.fields import fields_of
from prospect.data.sources.proassist_generated import GeneratedTurn, SystemTurn
from prospect.data.sources.proassist_prepared import clip_id
from prospect.dialogue.recipe import read_recipe
from prospect.dialogue.schema import AnyText, Dialogue, Id, Step, TimedTransition, TransitionKind
from prospect.dialogue.state import Transition
from prospect.dialogue.timeline import decision_frame
from prospect.errors import DataError

StepId = Annotated[str, Field(pattern=r"^S[1-9]\d*$")]


class Span(SourceRecord):
    """One entry of `dst`; both times are -1, or `performed` is false, where the step was skipped."""

    type: Literal["step", "STEP"]
    id: StepId
    name: OneLine
    performed: bool = True
    start_ts: Annotated[FiniteFloat, Field(ge=-1)]
    end_ts: FiniteFloat
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    source: AnyText | None = None

    @field_validator("end_ts")
    @classmethod
    def _span(cls, end: float, info: ValidationInfo) -> float:
        start = info.data.get("start_ts", end)
        if info.data.get("performed") and not (start == end == -1) and not 0 <= start <= end:
            raise PydanticCustomError("reversed", "must not lie before start_ts ({start} s)", {"start": start})
        return end

    def step(self) -> Step:
        known = {"id": self.id, "name": self.name, "confidence": self.confidence, "source": self.source or "dst"}
        if not self.performed or self.start_ts == self.end_ts == -1:
            return Step(**known, performed=False)
        return Step(**known, start=self.start_ts, end=self.end_ts)


class Change(SourceRecord):
    """One transition of a DST_UPDATE turn."""

    id: StepId
    transition: TransitionKind


class DstUpdate(SourceRecord):
    """One DST_UPDATE turn."""

    role: Literal["DST_UPDATE"]
    time: Time
    content: tuple[Change, ...]

    def transitions(self) -> Iterable[TimedTransition]:
        for change in self.content:
            yield TimedTransition(time=self.time, step=int(change.id[1:]) - 1, kind=change.transition)


class DstMetadata(SourceRecord):
    """What the per-video file keeps about the conversation."""

    user_type: AnyText = ""
    conversation_index: int = 0


class DstRecord(SourceRecord):
    """One conversation, or one clip of it."""

    dataset: Id
    video_uid: Id
    clip_idx: int = 0
    inferred_goal: AnyText = ""
    inferred_knowledge: AnyText = ""
    conversation: tuple[Annotated[GeneratedTurn | DstUpdate | SystemTurn, Field(discriminator="role")], ...]
    dst: tuple[Span, ...] | None = None
    metadata: DstMetadata = DstMetadata()
    start_frame_idx: int | None = None
    end_frame_idx: int | None = None

    def steps(self) -> tuple[Step, ...]:
        """The recipe's steps, with the spans of `dst` where it has them."""
        known = {
            f"S{n}": Step(id=f"S{n}", name=name, source="recipe")
            for n, name in enumerate(read_recipe(self.inferred_knowledge).steps, 1)
        }
        repeated = [step for step, count in Counter(span.id for span in self.dst or ()).items() if count > 1]
        if repeated:
            raise DataError(f"{repeated[0]} has more than one span", field="dst")
        known |= {span.id: span.step() for span in self.dst or ()}
        return tuple(sorted(known.values(), key=lambda step: int(step.id[1:])))

    def stated(self) -> tuple[TimedTransition, ...]:
        """The transitions of the DST_UPDATE turns."""
        updates = (turn for turn in self.conversation if isinstance(turn, DstUpdate))
        return tuple(transition for update in updates for transition in update.transitions())

    def uses(self, transition: TimedTransition) -> bool:
        """Whether the transition is decided in this clip, which alone has it as a turn."""
        frame = decision_frame(transition.time)
        after = self.end_frame_idx is not None and frame >= self.end_frame_idx
        return not after and frame >= (self.start_frame_idx or 0)

    def dialogue(self) -> Dialogue:
        turns = tuple(turn.turn() for turn in self.conversation if isinstance(turn, GeneratedTurn))
        user_type = self.metadata.user_type.removesuffix("_dst_enhanced")
        stated = self.stated()
        return Dialogue(
            dataset=self.dataset,
            video_id=self.video_uid,
            dialogue_id=clip_id(f"{user_type or 'user'}_{self.metadata.conversation_index}", self.clip_idx),
            user_type=user_type,
            goal=self.inferred_goal,
            knowledge=self.inferred_knowledge,
            steps=self.steps(),
            turns=turns,
            explicit_transitions=stated if stated and self.dst is None else None,
            first_frame=self.start_frame_idx,
            last_frame=self.end_frame_idx,
        )


def convert(raw: Raw) -> Dialogue:
    """One record; where it has spans and DST_UPDATE turns, they must say the same."""
    record = DstRecord.model_validate(raw)
    dialogue = record.dialogue()
    if record.dst is not None and record.stated():
        _require_agreement(filter(record.uses, dialogue.transitions()), record.stated())
    return dialogue


def _require_agreement(spans: Iterable[TimedTransition], stated: Iterable[TimedTransition]) -> None:
    from_spans, from_turns = (Counter((t.time, t.step, t.kind) for t in found) for found in (spans, stated))
    missing, extra = sorted((from_spans - from_turns).elements()), sorted((from_turns - from_spans).elements())
    if missing or extra:
        says, silent = ("dst", "no DST_UPDATE turn") if missing else ("a DST_UPDATE turn", "dst does not")
        time, step, kind = (missing or extra)[0]
        more = f" ({len(missing) + len(extra)} differences)" if len(missing) + len(extra) > 1 else ""
        raise DataError(f"{says} says {Transition.of(step, kind)} at {time:g} s, {silent}{more}", field="dst")


READER = Reader(patterns=("*.json", "*.jsonl"), fields=fields_of(DstRecord), convert=convert, split_in_name=True)
