"""ProAssist's prepared JSON lines: one clip of one dialogue a line, with frame ranges at 2 fps."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from prospect.data.sources.base import Raw, Reader, SourceRecord, Trimmed, recipe_steps
from prospect.data.sources.fields import fields_of
from prospect.data.sources.proassist_generated import GeneratedTurn, SystemTurn
from prospect.dialogue.recipe import read_recipe
from prospect.dialogue.schema import AnyText, Dialogue, Id
from prospect.dialogue.timeline import FPS
from prospect.errors import DataError

REQUEST = "Please summarize"
"""Start of the system turn that asks for the summary at a clip's end; one more frame stands before the summary."""


def _requests(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("role") == "system" and str(turn.get("content")).startswith(REQUEST)


def _split_answer(raw: Any) -> Any:
    """The record with the summary that follows the request moved to `answer`."""
    conversation = raw.get("conversation") if isinstance(raw, dict) else None
    if not isinstance(conversation, list):
        return raw
    end = next((place for place, turn in enumerate(conversation) if _requests(turn)), len(conversation))
    answer = [turn for turn in conversation[end:] if isinstance(turn, dict) and turn.get("role") == "assistant"]
    return raw | {"conversation": _utterances(conversation[:end]), "answer": answer[0] if answer else None}


def _utterances(conversation: list[Any]) -> list[Any]:
    """The turns, each in its place. A narration has no time: it is said after the frames before it."""
    turns = []
    seen: Any = None
    for turn in conversation:
        role = turn.get("role") if isinstance(turn, dict) else None
        if role == "frames":
            seen = turn.get("end")
        untimed = role == "assistant" and "time" not in turn and isinstance(seen, int)
        turns.append(turn | {"time": seen / FPS} if untimed else turn)
    return turns


class Metadata(SourceRecord):
    """Who speaks, and about what; narrations have none."""

    user_type: AnyText = ""
    user_id: Id = "narration"
    task_goal: AnyText = ""
    knowledge: AnyText = ""
    progress: AnyText | None = None
    has_summary: bool = False
    summary_only: bool = False


class Answer(SourceRecord):
    """The summary of progress at a clip's end."""

    content: Trimmed


class PreparedRecord(SourceRecord):
    """One line."""

    dataset: Id
    video_uid: Id
    clip_idx: int = 0
    fps: float = FPS
    start_frame_idx: int
    end_frame_idx: int
    conversation: tuple[Annotated[GeneratedTurn | SystemTurn, Field(discriminator="role")], ...]
    answer: Answer | None = None
    metadata: Annotated[Metadata, BeforeValidator(lambda given: {} if given is None else given)] = Metadata()


def clip_id(name: str, clip: int) -> str:
    """The id of a dialogue's `clip`th part; the first part has the dialogue's own."""
    return f"{name}-clip{clip}" if clip else name


def convert(raw: Raw) -> Dialogue:
    """One clip; `first_frame` and `last_frame` are the clip's, absolute and the end exclusive.

    A summary of progress at its end becomes the record's `summary`, and the frame of the request is left out. A clip
    with `summary_only` keeps the user's turns alone.
    """
    record = PreparedRecord.model_validate(_split_answer(raw))
    if record.fps != FPS:
        raise DataError(f"its frames are counted at {record.fps:g} fps and not at {FPS}", field="fps")
    alone = record.metadata.summary_only
    if (alone or record.metadata.has_summary) and record.answer is None:
        raise DataError("no summary stands behind its request for one", field="metadata.has_summary")
    name = clip_id(record.metadata.user_id, record.clip_idx)
    spoken = (turn for turn in record.conversation if isinstance(turn, GeneratedTurn))
    return Dialogue(
        dataset=record.dataset,
        video_id=record.video_uid,
        dialogue_id=f"{name}-summary" if alone else name,
        user_type=record.metadata.user_type,
        goal=record.metadata.task_goal,
        knowledge=record.metadata.knowledge,
        steps=recipe_steps(read_recipe(record.metadata.knowledge).steps),
        turns=tuple(turn.turn() for turn in spoken if turn.role == "user" or not alone),
        first_frame=record.start_frame_idx,
        last_frame=record.end_frame_idx - int(record.answer is not None),
        progress=record.metadata.progress or None,
        summary=None if record.answer is None else record.answer.content,
    )


FIELDS = fields_of(PreparedRecord, conversation=fields_of(GeneratedTurn, SystemTurn, start=None, end=None))

READER = Reader(patterns=("*.jsonl", "*.jsonl.gz"), fields=FIELDS, convert=convert, split_in_name=True)
