"""ProAssist's generated dialogues: one element a video, several conversations, one dialogue each.

The steps are those of the recipe text, without times, so there are no DST labels yet. The lines that annotators
wrote while they watched become annotations.
"""

import sys
from collections.abc import Iterator
from typing import Literal

from prospect.data.sources.annotations import read_lines
from prospect.data.sources.base import Duration, Raw, Reader, SourceRecord, Time, Trimmed, recipe_steps
from prospect.data.sources.fields import fields_of
from prospect.data.sources.quarantine import QuarantinedRecord
from prospect.dialogue.recipe import read_recipe
from prospect.dialogue.schema import AnyText, Dialogue, Id, Role, Turn
from prospect.errors import DataError


class GeneratedTurn(SourceRecord):
    """One utterance, with the assistant's rolling progress summary."""

    role: Role
    time: Time
    content: Trimmed
    labels: AnyText = ""
    progress: AnyText | None = None

    def turn(self) -> Turn:
        labels = sys.intern(self.labels)  # a few dozen different ones in a million turns
        progress = (self.progress or "").strip() or None
        return Turn(role=self.role, time=self.time, text=self.content, labels=labels, progress=progress)


class SystemTurn(SourceRecord):
    """A system prompt or a range of frames, which our clips make themselves."""

    role: Literal["system", "frames"]


class VideoAnnotations(SourceRecord):
    """The part of `parsed_video_anns` that places a conversation in its video."""

    duration: Duration | None = None
    video_start_time: Time | None = None


class GeneratedRecord(SourceRecord):
    """One conversation of one video."""

    dataset: Id
    video_uid: Id
    dialogue_id: Id
    user_type: AnyText = ""
    inferred_goal: AnyText = ""
    inferred_knowledge: AnyText = ""
    parsed_video_anns: VideoAnnotations
    conversation: tuple[GeneratedTurn, ...]


def split(element: Raw) -> Iterator[Raw | QuarantinedRecord]:
    """One record for each conversation of a video, numbered as ProAssist numbers its users: `talk_some_0`.

    Another value becomes an empty record, whose missing fields are named. Steps and annotations are read once and
    shared by the video's records.
    """
    conversations = element.get("conversations")
    if not isinstance(conversations, list) or not conversations:
        raise DataError("the video has no list of conversations", field="conversations")
    video = element.get("parsed_video_anns")
    video = video if isinstance(video, dict) else {}
    dataset = element.get("dataset") or video.get("dataset")
    lines = video.get("all_step_descriptions") or ""
    annotations, unread = read_lines(lines, str(dataset or ""), str(element.get("video_uid") or ""))
    yield from unread
    knowledge = element.get("inferred_knowledge")
    shared = {
        "dataset": dataset,
        "annotations": annotations,
        "steps": recipe_steps(read_recipe(knowledge).steps) if isinstance(knowledge, str) else (),
    }
    for number, conversation in enumerate(conversations):
        talk = conversation if isinstance(conversation, dict) else {}
        user_type = talk.get("user_type") or "user"
        yield {**element, **talk, **shared, "dialogue_id": f"{user_type}_{number}"}


def convert(raw: Raw) -> Dialogue:
    """One conversation; `video_start_time` (Assembly101) says from where the duration counts."""
    record = GeneratedRecord.model_validate(raw)
    dialogue = Dialogue(
        dataset=record.dataset,
        video_id=record.video_uid,
        dialogue_id=record.dialogue_id,
        user_type=record.user_type,
        goal=record.inferred_goal,
        knowledge=record.inferred_knowledge,
        turns=tuple(turn.turn() for turn in record.conversation),
        duration=record.parsed_video_anns.duration,
        video_start=record.parsed_video_anns.video_start_time or 0.0,
    )
    # The constructor would copy these for each conversation; EPIC-KITCHENS has up to 881 lines a video.
    return dialogue.model_copy(update={"steps": raw["steps"], "annotations": raw["annotations"]})


_CONVERSATION = fields_of(GeneratedRecord)
FIELDS = fields_of(
    dataset=None,
    video_uid=None,
    inferred_goal=None,
    inferred_knowledge=None,
    conversations=fields_of(user_type=None, conversation=_CONVERSATION.inside["conversation"]),
    parsed_video_anns=fields_of(VideoAnnotations, dataset=None, all_step_descriptions=None),
)

READER = Reader(patterns=("*.json",), fields=FIELDS, convert=convert, split=split, split_in_name=True)
