"""ProAssist's prepared JSON lines: one clip of one dialogue a line, with frame ranges at 2 fps."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from prospect.data.sources.base import Raw, Reader, SourceRecord, recipe_steps
from prospect.data.sources.proassist_generated import GeneratedTurn
from prospect.dialogue.schema import Dialogue, parse_recipe
from prospect.dialogue.timeline import FPS
from prospect.errors import DataError


def _utterances(conversation: Any) -> Any:
    """Without the system prompts and the ranges of frames between the turns, which our own clips redraw."""
    if not isinstance(conversation, list):
        return conversation
    return [turn for turn in conversation if not (isinstance(turn, dict) and turn.get("role") in ("system", "frames"))]


class Metadata(SourceRecord):
    """Who speaks, and about what."""

    user_type: str = ""
    user_id: str
    task_goal: str = ""
    knowledge: str = ""
    has_summary: bool = False


class PreparedRecord(SourceRecord):
    """One line."""

    dataset: str
    video_uid: str
    clip_idx: int = 0
    fps: float = FPS
    start_frame_idx: int
    end_frame_idx: int
    conversation: Annotated[tuple[GeneratedTurn, ...], BeforeValidator(_utterances)]
    metadata: Metadata


def clip_id(name: str, clip: int) -> str:
    """The id of a dialogue's `clip`th part; the first part has the dialogue's own."""
    return f"{name}-clip{clip}" if clip else name


def convert(raw: Raw) -> Dialogue:
    """One clip; `first_frame` and `last_frame` are the clip's, absolute and the end exclusive."""
    metadata = raw.get("metadata")
    if isinstance(metadata, dict) and metadata.get("has_summary"):
        raise DataError("its last turn is a summary of progress and no utterance", field="metadata.has_summary")
    record = PreparedRecord.model_validate(raw)
    if record.fps != FPS:
        raise DataError(f"its frames are counted at {record.fps:g} fps and not at {FPS}", field="fps")
    return Dialogue(
        dataset=record.dataset,
        video_id=record.video_uid,
        dialogue_id=clip_id(record.metadata.user_id, record.clip_idx),
        user_type=record.metadata.user_type,
        goal=record.metadata.task_goal,
        knowledge=record.metadata.knowledge,
        steps=recipe_steps(parse_recipe(record.metadata.knowledge)),
        turns=tuple(turn.turn() for turn in record.conversation),
        first_frame=record.start_frame_idx,
        last_frame=record.end_frame_idx,
    )


READER = Reader(patterns=("*.jsonl", "*.jsonl.gz"), convert=convert, split_in_name=True)
