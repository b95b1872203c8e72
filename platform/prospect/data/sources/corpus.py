"""Reads a source into a corpus: its records, their splits, and the files of their videos."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from prospect.data.sources.base import Result, SourceFile
from prospect.data.sources.fields import IgnoredField, IgnoredFields
from prospect.data.sources.hygiene import Duplicate, find_duplicates, with_splits, without_straddling
from prospect.data.sources.names import SPLITS, dataset_name, split_name
from prospect.data.sources.quarantine import QuarantinedRecord
from prospect.data.sources.settings import DataSettings
from prospect.data.sources.videos import find_videos
from prospect.dialogue.schema import Dialogue
from prospect.errors import ConfigError


class Source(Protocol):
    """What `read_corpus` needs of a source: the names of its files, for messages, and the files to read."""

    @property
    def patterns(self) -> tuple[str, ...]: ...

    def files(self, settings: DataSettings) -> list[SourceFile]: ...


@dataclass(frozen=True)
class Corpus:
    """The dialogues of a source, and what was found out about them."""

    dialogues: list[Dialogue]
    """In file order; every one has a split."""
    videos: dict[str, str]
    """Path or URL of the video file by video id, for every video that was found; ids may share a file."""
    quarantined: list[QuarantinedRecord] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    """Dialogues with the same content under different ids, across all splits."""
    ignored: list[IgnoredField] = field(default_factory=list)
    """Fields of the files that no reader uses."""
    nearest: dict[str, str] = field(default_factory=dict)
    """Of videos without a file: the path or URL of the file with the most similar name, if one is similar."""

    @property
    def missing_videos(self) -> list[str]:
        """Ids of the dialogues' videos without a file."""
        return sorted({dialogue.video_id for dialogue in self.dialogues} - self.videos.keys())

    def split(self, name: str) -> list[Dialogue]:
        return [dialogue for dialogue in self.dialogues if dialogue.split == split_name(name)]


def read_corpus(source: Source, settings: DataSettings) -> Corpus:
    """Everything that `source` finds under `settings.path`.

    Raises:
        ConfigError: an unknown data set, split or held-out video.
        DataError: a folder or file is missing or unreadable as a whole.
    """
    wanted = _splits(settings)
    ignored = IgnoredFields()
    dialogues, quarantined = _unique(_results(source.files(settings), settings, ignored))
    dialogues, straddling = without_straddling(with_splits(dialogues, settings.holdout))
    duplicates = find_duplicates(dialogues)
    dialogues = [dialogue for dialogue in dialogues if not wanted or dialogue.split in wanted]
    videos = find_videos(settings.video_folder, dialogues)
    left_out = [*quarantined, *straddling, *videos.ambiguous]
    return Corpus(dialogues, videos.found, left_out, duplicates, ignored.counted(), videos.nearest)


def _splits(settings: DataSettings) -> set[str]:
    wanted = set(map(split_name, settings.splits))
    unknown = sorted(wanted.difference(SPLITS))
    if unknown:
        raise ConfigError(
            f"data.splits: {unknown[0]!r} must be one of {', '.join(SPLITS)} and val", field="data.splits"
        )
    return wanted


def _results(files: list[SourceFile], settings: DataSettings, ignored: IgnoredFields) -> Iterator[Result]:
    """The results of the wanted data sets; a broken record without a data set stays in the report."""
    found, counts = {file.dataset for file in files}, Counter[str]()
    for file in files:
        for row in file.rows():
            names = {result.dataset for result in row.results}
            found |= names | set(map(dataset_name, names))
            kept = [result for result in row.results if _wanted(result.dataset, settings.datasets)]
            split = next((result.split for result in kept if isinstance(result, Dialogue)), None)
            if split is not None and settings.num_rows >= 0:
                counts[split] += 1
                if counts[split] > settings.num_rows:
                    if file.dataset and file.split:
                        break
                    continue
            if kept:
                ignored.add(kept[0].dataset, row.ignored)
            yield from kept
    for name in settings.datasets:
        if name not in found:
            known = ", ".join(sorted(filter(None, found)))
            raise ConfigError(f"data.datasets: {name!r} must be one of {known}", field="data.datasets")


def _wanted(dataset: str, datasets: tuple[str, ...]) -> bool:
    return not datasets or not dataset or dataset in datasets or dataset_name(dataset) in datasets


def _unique(results: Iterator[Result]) -> tuple[list[Dialogue], list[QuarantinedRecord]]:
    """Dialogues by id; the second one with the same video and dialogue id is quarantined."""
    dialogues: dict[tuple[str, str], Dialogue] = {}
    videos: dict[str, Dialogue] = {}
    quarantined = []
    for result in results:
        if isinstance(result, QuarantinedRecord):
            quarantined.append(result)
        elif (key := (result.video_id, result.dialogue_id)) in dialogues:
            reason = f"an earlier record of {dialogues[key].dataset} has the same video id and dialogue id"
            quarantined.append(QuarantinedRecord(result.dataset, "/".join(key), "dialogue_id", reason))
        else:
            dialogues[key] = _shared(result, videos.setdefault(result.video_id, result))
    return list(dialogues.values()), quarantined


def _shared(dialogue: Dialogue, first: Dialogue) -> Dialogue:
    """The dialogue, sharing equal fields with the first one of its video: up to 881 lines in ten dialogues."""
    names = ("goal", "knowledge", "steps", "annotations")
    return dialogue.model_copy(
        update={n: getattr(first, n) for n in names if getattr(first, n) == getattr(dialogue, n)}
    )
