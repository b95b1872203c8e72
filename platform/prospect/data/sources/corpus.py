"""From a source's settings to its corpus: which records, which of them are held out, and which videos are there."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from prospect.data.sources.base import QuarantinedRecord, Reader
from prospect.dialogue.schema import Dialogue
from prospect.errors import ConfigError, DataError
from prospect.lineage import derived_seed
from prospect.settings import Settings

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm"})


class DataSettings(Settings):
    """Where dialogues and videos come from."""

    source: str
    """Name of the reader; docs/data.md has each one's format."""
    path: Path
    """A file of records, or a folder of them."""
    videos: Path | None = None
    """Folder of video files named after their video id, at any depth; default: the folder of `path`."""
    datasets: tuple[str, ...] = ()
    """Only records of these data sets; empty: all."""
    num_rows: int = Field(default=-1, ge=-1)
    """At most this many dialogues, in file order; -1: all."""
    holdout: int | tuple[str, ...] = ()
    """Which videos are the test split where the source has none: their ids, or how many (drawn by hash of the id)."""

    @property
    def video_folder(self) -> Path:
        return self.videos or (self.path if self.path.is_dir() else self.path.parent)


@dataclass(frozen=True)
class Corpus:
    """What a source holds."""

    dialogues: list[Dialogue]
    """In file order; every one has a split."""
    videos: dict[str, Path]
    """Video files by video id, of the dialogues' videos that are on disk."""
    quarantined: list[QuarantinedRecord] = field(default_factory=list)

    @property
    def missing_videos(self) -> list[str]:
        """Ids of videos that a dialogue is about and no file was found for."""
        return sorted({dialogue.video_id for dialogue in self.dialogues} - self.videos.keys())

    def split(self, name: str) -> list[Dialogue]:
        return [dialogue for dialogue in self.dialogues if dialogue.split == name]


def read_corpus(reader: Reader, settings: DataSettings) -> Corpus:
    """Everything that `reader` finds under `settings.path`.

    Raises:
        ConfigError: an unknown data set or held-out video.
        DataError: a folder or file is missing or unreadable as a whole.
    """
    results = [result for file in reader.files(settings.path) for result in reader.read(file)]
    dialogues, quarantined = _unique(_of_datasets(results, settings.datasets))
    if settings.num_rows >= 0:
        dialogues = dialogues[: settings.num_rows]
    dialogues = _with_splits(dialogues, settings.holdout)
    return Corpus(dialogues, find_videos(settings.video_folder, {d.video_id for d in dialogues}), quarantined)


def _of_datasets(
    results: list[Dialogue | QuarantinedRecord], datasets: tuple[str, ...]
) -> list[Dialogue | QuarantinedRecord]:
    """The results of these data sets; a broken record that names none stays in the report."""
    found = {result.dataset for result in results}
    for name in datasets:
        if name not in found:
            known = ", ".join(sorted(filter(None, found)))
            raise ConfigError(f"data.datasets: {name!r} is none of {known}", field="data.datasets")
    return [result for result in results if not datasets or result.dataset in (*datasets, "")]


def _unique(results: Iterable[Dialogue | QuarantinedRecord]) -> tuple[list[Dialogue], list[QuarantinedRecord]]:
    """Dialogues whose (video_id, dialogue_id) is new; every later one with the same ids is quarantined."""
    dialogues: dict[tuple[str, str], Dialogue] = {}
    quarantined: list[QuarantinedRecord] = []
    for result in results:
        if isinstance(result, QuarantinedRecord):
            quarantined.append(result)
        elif (key := (result.video_id, result.dialogue_id)) in dialogues:
            reason = f"an earlier record of {dialogues[key].dataset} has the same video id and dialogue id"
            quarantined.append(QuarantinedRecord(result.dataset, "/".join(key), "dialogue_id", reason))
        else:
            dialogues[key] = result
    return list(dialogues.values()), quarantined


def _with_splits(dialogues: list[Dialogue], holdout: int | tuple[str, ...]) -> list[Dialogue]:
    """Held-out videos are `test`; of the others, those without a split of the source are `train`."""
    test = frozenset(_drawn(dialogues, holdout) if isinstance(holdout, int) else holdout)
    unknown = sorted(test - {dialogue.video_id for dialogue in dialogues})
    if unknown:
        raise ConfigError(f"data.holdout: no dialogue is about video {unknown[0]!r}", field="data.holdout")
    return [d.model_copy(update={"split": "test" if d.video_id in test else d.split or "train"}) for d in dialogues]


def _drawn(dialogues: list[Dialogue], count: int) -> list[str]:
    """`count` videos by hash, so that the draw does not change with the order of the files."""
    free = sorted({d.video_id for d in dialogues if not d.split}, key=lambda video: derived_seed("holdout", video))
    if not 0 <= count <= len(free):
        raise ConfigError(
            f"data.holdout: {count} of {len(free)} videos without a split of their own cannot be held out",
            field="data.holdout",
        )
    return free[:count]


def find_videos(folder: Path, video_ids: set[str]) -> dict[str, Path]:
    """The video files under `folder` whose name without suffix is one of `video_ids`.

    Raises:
        DataError: the folder is missing, or two files have one id.
    """
    if not folder.is_dir():
        raise DataError(f"data.videos: there is no folder at {folder}", field="data.videos")
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in VIDEO_SUFFIXES and f.stem in video_ids)
    repeated = [video for video, count in Counter(file.stem for file in files).items() if count > 1]
    if repeated:
        both = " and ".join(str(file) for file in files if file.stem == repeated[0])
        raise DataError(f"data.videos: video {repeated[0]!r} is both {both}", field="data.videos")
    return {file.stem: file for file in files}
