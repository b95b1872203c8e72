"""The report on labels: counts by data set and split, and everything left out with its reason."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace

from rich.table import Table
from rich.text import Text

from prospect.data.labels.llm.report import MappingReport
from prospect.data.sources import (
    Corpus,
    Duplicate,
    IgnoredField,
    QuarantinedRecord,
    group_reasons,
    place_all,
)
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.state import StatePolicy, TaskState
from prospect.dialogue.timeline import FPS, Timeline
from prospect.escape import metric_part

_SHOWN = 10
"""Reasons of what was left out that are printed; report.json has all."""

COLUMNS = ("videos", "hours", "dialogues", "turns", "steps", "labels", "illegal", "unlabelled", "quarantined")


@dataclass(frozen=True)
class DialogueLabels:
    """The counts of one dialogue."""

    num_frames: int
    transitions: int
    """Transitions with a frame, legal or not."""
    illegal: int
    """Those of them that the state machine refuses: counted, never applied."""
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
    labels: int = 0
    """DST labels: transitions with a frame."""
    illegal: int = 0
    """Labels that the state machine refuses."""
    unlabelled: int = 0
    """Dialogues whose steps have no times."""
    quarantined: int = 0


@dataclass(frozen=True)
class LabelReport:
    """The outcome of labelling."""

    rows: tuple[LabelRow, ...]
    quarantined: tuple[QuarantinedRecord, ...]
    """Every record, event and mapping left out."""
    duplicates: tuple[Duplicate, ...] = ()
    """Dialogues with the same content under different ids; both are kept."""
    overlaps: tuple[QuarantinedRecord, ...] = ()
    """Overlaps of neighbouring steps beyond `max_overlap_s`, kept as annotated."""
    mapping: MappingReport | None = None
    """Requests to the language model and their cost, if one was used."""
    ignored: tuple[IgnoredField, ...] = ()
    """Fields of the source's files that no reader uses."""
    nearest: dict[str, str] = field(default_factory=dict)
    """Of videos without a file: the file with the most similar name, if one is similar."""
    title: str = "Labels"

    def about(self, corpus: Corpus) -> "LabelReport":
        """The report with what `corpus` ignored and did not find."""
        return replace(self, ignored=tuple(corpus.ignored), nearest=corpus.nearest)

    def metrics(self) -> dict[str, float]:
        """The table's numbers as flat names, `data/train/holoassist/videos`, for a tracker."""
        numbers = ((row, column, getattr(row, column)) for row in self.rows for column in COLUMNS)
        return {f"data/{row.split}/{metric_part(row.dataset)}/{column}": float(value) for row, column, value in numbers}

    def to_json(self) -> str:
        """All of it, and the reasons of what was left out, with counts."""
        reasons = [asdict(reason) for reason in group_reasons(self.quarantined)]
        return json.dumps({**asdict(self), "reasons": reasons}, indent=2, ensure_ascii=False)

    def remarks(self) -> Iterator[str]:
        """Sentences on what the table does not show; report.json has every case."""
        if self.quarantined:
            reasons = group_reasons(self.quarantined)
            yield f"quarantined records and events: {len(self.quarantined):,}, for {len(reasons)} reasons"
            yield from (f"quarantined: {reason}" for reason in reasons[:_SHOWN])
        if self.duplicates:
            crossing = sum(pair.crosses_splits for pair in self.duplicates)
            yield f"duplicates: {len(self.duplicates)}, {crossing} across splits; the first: {self.duplicates[0]}"
        if self.overlaps:
            yield f"overlaps of steps, kept as annotated: {len(self.overlaps)}; the first: {self.overlaps[0]}"

    def __rich__(self) -> Table:
        table = Table("dataset", "split", title=self.title)
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for row in self.rows:
            values = (getattr(row, column) for column in COLUMNS)
            numbers = (f"{v:.2f}" if isinstance(v, float) else f"{v:,}" for v in values)
            table.add_row(Text(row.dataset), Text(row.split), *numbers)
        table.caption = Text("\n".join(self._notes())) if self.ignored or self.nearest else None
        return table

    def _notes(self) -> Iterator[str]:
        if self.ignored:
            yield f"Fields that are not read: {', '.join(map(str, self.ignored))}"
        if self.nearest:
            first = ", ".join(f"{video!r} ({file})" for video, file in [*self.nearest.items()][:_SHOWN])
            yield f"Videos without a file, with the file of the nearest name ({len(self.nearest):,}): {first}"


def count_labels(corpus: Corpus, frames_of: Callable[[str], int | None]) -> LabelReport:
    """The report on a corpus that is not labelled here."""
    placed, events = place_all(corpus.dialogues, frames_of)
    labelled = [(dialogue, DialogueLabels.of(timeline)) for dialogue, timeline in placed]
    report = summarize(labelled, corpus.quarantined, events, duplicates=corpus.duplicates)
    return replace(report.about(corpus), title="Dialogues")


def summarize(
    labelled: Iterable[tuple[Dialogue, DialogueLabels]],
    unread: Iterable[QuarantinedRecord],
    events: Iterable[QuarantinedRecord],
    *,
    duplicates: Iterable[Duplicate] = (),
    overlaps: Iterable[QuarantinedRecord] = (),
    mapping: MappingReport | None = None,
) -> LabelReport:
    """The report on labelled dialogues, on records that no reader could use, and on events without a frame."""
    groups: dict[tuple[str, str], list[tuple[Dialogue, DialogueLabels]]] = defaultdict(list)
    for dialogue, labels in labelled:
        groups[dialogue.dataset, dialogue.split].append((dialogue, labels))
    rows = [_row(dataset, split, members) for (dataset, split), members in sorted(groups.items())]
    unread = tuple(unread)
    for dataset, count in sorted(Counter(record.dataset for record in unread).items()):
        rows.append(LabelRow(dataset or "unknown", "unread", quarantined=count))
    return LabelReport(tuple(rows), (*unread, *events), tuple(duplicates), tuple(overlaps), mapping)


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
        labels=sum(labels.transitions for _, labels in members),
        unlabelled=sum(bool(dialogue.steps) and not dialogue.has_dst_labels for dialogue, _ in members),
        illegal=sum(labels.illegal for _, labels in members),
        quarantined=sum(labels.quarantined for _, labels in members),
    )
