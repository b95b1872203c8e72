"""ProAssist's JSON with the `dst` key, one record a conversation; the reader `proassist_dst` reads it back."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from prospect.dialogue.recipe import read_recipe
from prospect.dialogue.schema import Dialogue, Step, TimedTransition, Turn

SKIPPED = -1
"""Both times of a step that was not performed, as CaptainCook4D writes them."""


def to_proassist(dialogues: Iterable[Dialogue]) -> Iterator[bytes]:
    """One JSON document in parts: a list with a record for each dialogue."""
    numbers: Counter[str] = Counter()
    yield b"["
    for number, dialogue in enumerate(dialogues):
        record = _record(dialogue, numbers[dialogue.video_id])
        numbers[dialogue.video_id] += 1
        yield (",\n" if number else "\n").encode() + json.dumps(record, ensure_ascii=False).encode()
    yield b"\n]\n"


def _record(dialogue: Dialogue, index: int) -> dict[str, Any]:
    updates = [_update(change) for change in dialogue.explicit_transitions or ()]
    turns = [_turn(turn) for turn in dialogue.turns]
    rows = [_row(step) for step in dialogue.steps if step.start is not None or not step.performed]
    return {
        "dataset": dialogue.dataset,
        "video_uid": dialogue.video_id,
        "inferred_goal": dialogue.goal,
        "inferred_knowledge": _recipe(dialogue),
        "conversation": sorted([*updates, *turns], key=lambda turn: turn["time"]),
        **({} if updates else {"dst": rows}),
        "metadata": {"conversation_index": index, "user_type": f"{dialogue.user_type or 'user'}_dst_enhanced"},
    }


def _recipe(dialogue: Dialogue) -> str:
    """The recipe text, from which this format's steps are read: numbered lines, of the steps where it has others."""
    if read_recipe(dialogue.knowledge).steps == dialogue.step_names:
        return dialogue.knowledge
    steps = "\n".join(f"{number}. {name}" for number, name in enumerate(dialogue.step_names, 1))
    titled = f"{dialogue.goal}\n{steps}"
    return titled if read_recipe(titled).steps == dialogue.step_names else steps


def _row(step: Step) -> dict[str, Any]:
    times = (step.start, step.end) if step.performed else (SKIPPED, SKIPPED)
    row = {"type": "step", "id": step.id, "start_ts": times[0], "end_ts": times[1], "name": step.name}
    return row | {"confidence": step.confidence, "source": step.source}


def _turn(turn: Turn) -> dict[str, Any]:
    said = {"role": turn.role, "time": turn.time, "content": turn.text, "labels": turn.labels}
    return said if turn.progress is None else said | {"progress": turn.progress}


def _update(change: TimedTransition) -> dict[str, Any]:
    content = [{"id": f"S{change.step + 1}", "transition": change.kind}]
    return {"role": "DST_UPDATE", "time": change.time, "content": content}
