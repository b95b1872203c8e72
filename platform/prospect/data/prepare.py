"""From records and embeddings to what training needs: clips, a tokenizer, the mean and deviation of the frames."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prospect.data.embeddings import EmbeddingStore
from prospect.data.sources import DataSettings, QuarantinedRecord, load_dialogues, place_all, split_name
from prospect.data.sources.dialogues import READER
from prospect.dialogue.prompt import SUMMARY_REQUEST, SYSTEM_PROMPT
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.state import StepState
from prospect.dialogue.timeline import Timeline
from prospect.errors import DataError
from prospect.hashing import derived_seed, fingerprint

MAX_STATISTICS_FRAMES = 20_000
"""Frames over which mean and whitening are taken."""

WHITENING_FLOOR = 0.02
"""Variance, as a share of a dimension's own, below which a direction is damped: it lets a model learn single
pictures by heart."""


@dataclass(frozen=True)
class Records:
    """The dialogues of a source on the frames of their embeddings."""

    placed: list[tuple[Dialogue, Timeline]]
    quarantined: list[QuarantinedRecord]
    lost: list[Dialogue] = field(default_factory=list)
    """Those whose video could not be embedded."""
    videos: dict[str, str] = field(default_factory=dict)
    """Path or URL of the video file by video id, where one was found."""

    def split(self, name: str) -> list[tuple[Dialogue, Timeline]]:
        return [(dialogue, timeline) for dialogue, timeline in self.placed if dialogue.split == split_name(name)]

    def scored(self, name: str) -> list[tuple[Dialogue, Timeline]]:
        """Those of the split that say when the assistant speaks."""
        return [(dialogue, timeline) for dialogue, timeline in self.split(name) if not dialogue.summary_only]

    @property
    def fingerprint(self) -> str:
        """Changes with any record."""
        return fingerprint([dialogue.model_dump(mode="json") for dialogue, _ in self.placed])


def read_records(data: DataSettings, labels: Path, store: EmbeddingStore) -> Records:
    """The source's dialogues, with the labels of the labelling job where it ran.

    A dialogue whose video could not be embedded, as the store says, is quarantined with the store's reason.

    Args:
        data: the source.
        labels: `dialogues.jsonl` of the labelling job; need not exist.
        store: embeddings of the videos.

    Raises:
        DataError: no dialogue, videos without embedding, labels that belong to another source, no embeddings at all.
        ConfigError: an unknown source, data set or held-out video.
    """
    corpus = load_dialogues(data)
    dialogues = _labelled(corpus.dialogues, labels) if labels.is_file() else corpus.dialogues
    known, failed = set(store.video_ids()), store.quarantined()
    missing = sorted({dialogue.video_id for dialogue in dialogues} - known - failed.keys())
    if not known:
        raise DataError(f"no embeddings in {store.root}; run jobs/embed.py first")
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise DataError(
            f"{len(missing)} videos have no embedding in {store.root} ({shown}); run jobs/embed.py for them"
        )
    lost = [dialogue for dialogue in dialogues if dialogue.video_id not in known]
    broken = [
        QuarantinedRecord(d.dataset, f"{d.video_id}/{d.dialogue_id}", "video", failed[d.video_id]["reason"])
        for d in lost
    ]
    usable = [dialogue for dialogue in dialogues if dialogue.video_id in known]
    placed, misplaced = place_all(usable, store.num_frames)
    if not placed:
        raise DataError(f"data.path: {data.path} holds no dialogue that can be used", field="data.path")
    return Records(placed, [*corpus.quarantined, *broken, *misplaced], lost, corpus.videos)


def _labelled(dialogues: Sequence[Dialogue], labels: Path) -> list[Dialogue]:
    """Each dialogue as the labelling job wrote it, in the split that the source's settings give it now."""
    found = [result for result in READER.read(labels) if isinstance(result, Dialogue)]
    by_id = {(dialogue.video_id, dialogue.dialogue_id): dialogue for dialogue in found}
    labelled = []
    for dialogue in dialogues:
        label = by_id.get((dialogue.video_id, dialogue.dialogue_id))
        if label is None or label.turns != dialogue.turns:
            raise DataError(
                f"{labels} was made from other records than data.path (it lacks {dialogue.video_id} "
                f"{dialogue.dialogue_id} as it is there); run jobs/label.py with the same data settings"
            )
        labelled.append(label.model_copy(update={"split": dialogue.split}))
    return labelled


def training_texts(dialogues: Iterable[Dialogue], summaries: bool = False) -> Iterator[str]:
    """Everything that a model reads and writes about `dialogues`, for fitting a tokenizer."""
    if summaries:
        yield SUMMARY_REQUEST
    for dialogue in dialogues:
        yield f"system: {SYSTEM_PROMPT}\nuser: Task: {dialogue.goal}\nTask knowledge: {dialogue.knowledge}\nLast said:"
        yield from (f"\n{turn.role}: {turn.text}" for turn in dialogue.turns)
        yield from (turn.text for turn in dialogue.turns)
        if summaries:
            yield from (f"\nProgress: {text}" for turn in dialogue.turns for text in (turn.progress,) if text)
            yield from (text for text in (dialogue.progress, dialogue.summary) if text)
        yield "\nSteps:"
        for number, name in enumerate(dialogue.step_names, 1):
            yield from (f"\nS{number} ({state.label}) {name}" for state in StepState)
            yield f"S{number}->start; S{number}->complete"


def frame_statistics(
    store: EmbeddingStore, video_ids: Iterable[str], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean [D] and whitening [D, D] over all tokens of at most `MAX_STATISTICS_FRAMES` frames of whole videos.

    (frame - mean) @ whitening has mean 0 and no correlations; directions that hold next to nothing stay small.
    """
    videos = sorted(set(video_ids))
    random.Random(derived_seed("frame-statistics", seed)).shuffle(videos)
    rows: list[np.ndarray] = []
    for video in videos:
        if sum(map(len, rows)) >= MAX_STATISTICS_FRAMES * store.tokens_per_frame:
            break
        rows.append(store.read(video).reshape(-1, store.dim).astype(np.float64))
    frames = np.concatenate(rows)
    mean, deviation = frames.mean(0), frames.std(0).clip(1e-6)
    scaled = (frames - mean) / deviation
    variances, directions = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    whitening = directions / np.sqrt(variances + WHITENING_FLOOR) / deviation[:, None]
    return mean.astype(np.float32), whitening.astype(np.float32)
