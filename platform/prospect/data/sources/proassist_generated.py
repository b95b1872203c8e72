"""ProAssist's generated dialogues: one element a video, several conversations, one dialogue each.

The steps are those of the recipe text; nobody has timed them, so there are no DST labels yet.
"""

from collections.abc import Iterator

from pydantic import FiniteFloat

from prospect.data.sources.base import Raw, Reader, SourceRecord, Trimmed, recipe_steps
from prospect.dialogue.schema import Dialogue, Role, Turn, parse_recipe
from prospect.errors import DataError


class GeneratedTurn(SourceRecord):
    """One utterance, with the assistant's rolling progress summary."""

    role: Role
    time: FiniteFloat
    content: Trimmed
    labels: str = ""
    progress: str | None = None

    def turn(self) -> Turn:
        return Turn(role=self.role, time=self.time, text=self.content, labels=self.labels, progress=self.progress)


class VideoAnnotations(SourceRecord):
    """The part of `parsed_video_anns` that places a conversation in its video."""

    dataset: str
    duration: FiniteFloat | None = None
    video_start_time: FiniteFloat | None = None


class GeneratedRecord(SourceRecord):
    """One conversation of one video."""

    video_uid: str
    dialogue_id: str
    user_type: str = ""
    inferred_goal: str = ""
    inferred_knowledge: str = ""
    parsed_video_anns: VideoAnnotations
    conversation: tuple[GeneratedTurn, ...]


def split(element: Raw) -> Iterator[Raw]:
    """One record for each conversation of a video, numbered as ProAssist numbers its users: `talk_some_0`.

    What is no conversation becomes an empty one, whose missing fields are named.
    """
    conversations = element.get("conversations")
    if not isinstance(conversations, list) or not conversations:
        raise DataError("the video has no list of conversations", field="conversations")
    annotations = element.get("parsed_video_anns")
    dataset = annotations.get("dataset") if isinstance(annotations, dict) else None
    for number, conversation in enumerate(conversations):
        talk = conversation if isinstance(conversation, dict) else {}
        user_type = talk.get("user_type") or "user"
        yield {**element, **talk, "dataset": dataset, "dialogue_id": f"{user_type}_{number}"}


def convert(raw: Raw) -> Dialogue:
    """One conversation; `video_start_time` (Assembly101) says from where the duration counts."""
    record = GeneratedRecord.model_validate(raw)
    return Dialogue(
        dataset=record.parsed_video_anns.dataset,
        video_id=record.video_uid,
        dialogue_id=record.dialogue_id,
        user_type=record.user_type,
        goal=record.inferred_goal,
        knowledge=record.inferred_knowledge,
        steps=recipe_steps(parse_recipe(record.inferred_knowledge)),
        turns=tuple(turn.turn() for turn in record.conversation),
        duration=record.parsed_video_anns.duration,
        video_start=record.parsed_video_anns.video_start_time or 0.0,
    )


READER = Reader(patterns=("*.json",), convert=convert, split=split, split_in_name=True)
