"""Readers: one module a format, each turning files into `Dialogue` records. `load_dialogues` is the entry point.

A new format is one module with a `READER`, its line in `READERS`, and one file in configs/data. A new data set in
an existing format needs only the file in configs/data.
"""

from prospect.data.sources import (
    canonical,
    dialogues,
    folder,
    holoassist,
    proassist_dst,
    proassist_generated,
    proassist_prepared,
    proassist_tree,
)
from prospect.data.sources.corpus import Corpus, Source, read_corpus
from prospect.data.sources.dialogues import to_jsonl
from prospect.data.sources.fields import IgnoredField
from prospect.data.sources.hygiene import Duplicate
from prospect.data.sources.names import file_stem, recording_of, split_name
from prospect.data.sources.placement import place_all
from prospect.data.sources.quarantine import QuarantinedRecord, Reason, group_reasons
from prospect.data.sources.settings import DataSettings
from prospect.data.sources.videos import feature_files, find_videos
from prospect.errors import ConfigError

READERS: dict[str, Source] = {
    "canonical": canonical.READER,
    "dialogues": dialogues.READER,
    "folder": folder.READER,
    "holoassist": holoassist.READER,
    "proassist": proassist_tree.READER,
    "proassist_dst": proassist_dst.READER,
    "proassist_generated": proassist_generated.READER,
    "proassist_prepared": proassist_prepared.READER,
}

__all__ = [
    "READERS",
    "Corpus",
    "DataSettings",
    "Duplicate",
    "IgnoredField",
    "QuarantinedRecord",
    "Reason",
    "feature_files",
    "file_stem",
    "find_videos",
    "group_reasons",
    "load_dialogues",
    "place_all",
    "recording_of",
    "split_name",
    "to_jsonl",
]


def load_dialogues(settings: DataSettings) -> Corpus:
    """All dialogues of a source with their splits, the videos found for them, and what was quarantined.

    Raises:
        ConfigError: an unknown source, data set or held-out video.
        DataError: a folder or file is missing or unreadable as a whole.
    """
    if settings.source not in READERS:
        known = ", ".join(sorted(READERS))
        raise ConfigError(f"data.source: {settings.source!r} must be one of {known}", field="data.source")
    return read_corpus(READERS[settings.source], settings)
