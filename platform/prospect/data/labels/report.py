"""What labelling found: counts by data set and split, and everything that was left out, with its reason."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from rich.table import Table

from prospect.data.sources import QuarantinedRecord
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.state import StatePolicy, TaskState
from prospect.dialogue.timeline import FPS, Timeline


@dataclass(frozen=True)
class DialogueLabels:
    """The counts of one dialogue and what of it was quarantined."""

    num_frames: int
    transitions: int
    """Transitions that have a frame, legal or not."""
    illegal: int
    """Transitions of these that the state machine refuses: counted, never applied."""
    quarantined: int

    @classmethod
    def of(cls, timeline: Timeline, policy: StatePolicy = "strict") -> "DialogueLabels":
        state, illegal = TaskState.initial(timeline.num_steps), 0
        for frame in sorted(timeline.events):
            state, refused = state.apply(timeline[frame].delta, policy)
            illegal += len(refused)
        transitions = sum(len(events.delta) for events in timeline.events.values())
        return cls(timeline.num_frames, transitions, illegal, len(timeline.quarantined))


@dataclass(frozen=True)
class LabelRow:
    """One data set and split; records that could not be read have the split `unread`."""

    dataset: str
    split: str
    videos: int = 0
    hours: float = 0.0
    dialogues: int = 0
    turns: int = 0
    steps: int = 0
    transitions: int = 0
    illegal: int = 0
    quarantined: int = 0


@dataclass(frozen=True)
class LabelReport:
    """The outcome of labelling."""

    rows: tuple[LabelRow, ...]
    quarantined: tuple[QuarantinedRecord, ...]
    """Every record and event that was left out."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def __rich__(self) -> Table:
        table = Table("dataset", "split", title="Labels")
        columns = ("videos", "hours", "dialogues", "turns", "steps", "transitions", "illegal", "quarantined")
        for column in columns:
            table.add_column(column, justify="right")
        for row in self.rows:
            values = (getattr(row, column) for column in columns)
            table.add_row(row.dataset, row.split, *(f"{v:.2f}" if isinstance(v, float) else f"{v:,}" for v in values))
        return table


def summarize(
    labelled: Iterable[tuple[Dialogue, DialogueLabels]],
    unread: Iterable[QuarantinedRecord],
    events: Iterable[QuarantinedRecord],
) -> LabelReport:
    """The report on labelled dialogues, on records that no reader could use, and on events without a frame."""
    groups: dict[tuple[str, str], list[tuple[Dialogue, DialogueLabels]]] = defaultdict(list)
    for dialogue, labels in labelled:
        groups[dialogue.dataset, dialogue.split].append((dialogue, labels))
    rows = [_row(dataset, split, members) for (dataset, split), members in sorted(groups.items())]
    unread = tuple(unread)
    for dataset in sorted({record.dataset for record in unread}):
        count = sum(record.dataset == dataset for record in unread)
        rows.append(LabelRow(dataset or "unknown", "unread", quarantined=count))
    return LabelReport(tuple(rows), (*unread, *events))


def _row(dataset: str, split: str, members: list[tuple[Dialogue, DialogueLabels]]) -> LabelRow:
    frames: dict[str, int] = {}
    for dialogue, labels in members:
        frames[dialogue.video_id] = max(labels.num_frames, frames.get(dialogue.video_id, 0))
    return LabelRow(
        dataset=dataset,
        split=split,
        videos=len(frames),
        hours=sum(frames.values()) / FPS / 3600,
        dialogues=len(members),
        turns=sum(len(dialogue.turns) for dialogue, _ in members),
        steps=sum(len(dialogue.steps) for dialogue, _ in members),
        transitions=sum(labels.transitions for _, labels in members),
        illegal=sum(labels.illegal for _, labels in members),
        quarantined=sum(labels.quarantined for _, labels in members),
    )
