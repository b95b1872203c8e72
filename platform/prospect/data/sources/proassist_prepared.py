"""ProAssist's prepared JSON lines: one clip of one dialogue a line, with frame ranges at 2 fps."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from prospect.data.sources.base import Raw, Reader, SourceRecord, recipe_steps
from prospect.data.sources.proassist_generated import GeneratedTurn
from prospect.dialogue.schema import Dialogue, parse_recipe
from prospect.dialogue.timeline import FPS
from prospect.errors import DataError

SUMMARY_REQUEST = "Please summarize"
"""How the system turn begins that stands, with one frame more, before the summary of progress at a clip's end."""


def _utterances(conversation: Any) -> Any:
    """The turns up to the request for a summary, without system prompts and ranges of frames, which our clips redraw.

    Narrations have no times: each is said when the frames before it have been seen.
    """
    if not isinstance(conversation, list):
        return conversation
    utterances = []
    seen: Any = None
    for turn in conversation:
        role = turn.get("role") if isinstance(turn, dict) else None
        if role == "system" and str(turn.get("content")).startswith(SUMMARY_REQUEST):
            break
        if role == "frames":
            seen = turn.get("end")
        elif role != "system":
            untimed = role == "assistant" and "time" not in turn and isinstance(seen, int)
            utterances.append(turn | {"time": seen / FPS} if untimed else turn)
    return utterances


class Metadata(SourceRecord):
    """Who speaks, and about what; narrations have none."""

    user_type: str = ""
    user_id: str = "narration"
    task_goal: str = ""
    knowledge: str = ""
    has_summary: bool = False
    summary_only: bool = False


class PreparedRecord(SourceRecord):
    """One line."""

    dataset: str
    video_uid: str
    clip_idx: int = 0
    fps: float = FPS
    start_frame_idx: int
    end_frame_idx: int
    conversation: Annotated[tuple[GeneratedTurn, ...], BeforeValidator(_utterances)]
    metadata: Annotated[Metadata, BeforeValidator(lambda given: {} if given is None else given)] = Metadata()


def clip_id(name: str, clip: int) -> str:
    """The id of a dialogue's `clip`th part; the first part has the dialogue's own."""
    return f"{name}-clip{clip}" if clip else name


def convert(raw: Raw) -> Dialogue:
    """One clip; `first_frame` and `last_frame` are the clip's, absolute and the end exclusive.

    A summary of progress at its end is no utterance: it is left out with the frame that it is asked for at.
    """
    record = PreparedRecord.model_validate(raw)
    if record.fps != FPS:
        raise DataError(f"its frames are counted at {record.fps:g} fps and not at {FPS}", field="fps")
    if record.metadata.summary_only:
        raise DataError("it says nothing but a summary of progress", field="metadata.summary_only")
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
        last_frame=record.end_frame_idx - int(record.metadata.has_summary),
    )


READER = Reader(patterns=("*.jsonl", "*.jsonl.gz"), convert=convert, split_in_name=True)
