"""Finds the files of a video id: the video, ProAssist's frames, or ProAssist's features."""

import difflib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prospect.data.sources.files import is_folder, list_files, list_folders
from prospect.data.sources.names import dataset_name, file_stem
from prospect.data.sources.proassist_tree import datasets_of
from prospect.data.sources.quarantine import QuarantinedRecord
from prospect.data.sources.settings import DataSettings
from prospect.dialogue.schema import Dialogue
from prospect.errors import ConfigError, DataError

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts"}
    | {".webm", ".wmv"}
)
FRAMES_SUFFIX = ".arrow"
"""ProAssist's pictures at 2 frames a second, in a folder `frames`."""

_NAMED_BY_FOLDER = frozenset({"Video_pitchshift", "Video"})
"""HoloAssist's `<id>/Export_py/Video_pitchshift.mp4` and WTaG's `<id>/Video/Video.mpeg`."""

_MOST_COMPARED = 200
"""Missing videos whose nearest file is looked for."""


@dataclass(frozen=True)
class VideoFiles:
    """The files of the dialogues' videos."""

    found: dict[str, str]
    """Path or URL by video id; two ids may share one."""
    ambiguous: list[QuarantinedRecord]
    """Videos that several files may hold."""
    nearest: dict[str, str]
    """Of videos without a file: the file with the most similar name, if one is similar."""


def find_videos(folder: str, dialogues: Iterable[Dialogue]) -> VideoFiles:
    """The file of each video under `folder` that a dialogue is about.

    A file is named after the video id or its `file_stem`, with or without its suffix and folders, or lies as the
    data sets' own releases have it. Names that differ in case or in the way an umlaut is written are tried last. Of
    several files the one in a folder named after the data set counts.

    Raises:
        DataError: the folder is missing.
    """
    if not is_folder(folder):
        raise DataError(f"data.videos: {folder} does not exist", field="data.videos")
    exact, plain = defaultdict(list), defaultdict(list)
    for url in list_files(folder, "*.*", recursive=True):
        for name in _names(url):
            exact[name].append(url)
            plain[_plain(name)].append(url)
    fitting = {
        (dataset, video): _fitting(dataset, video, exact) or _fitting(dataset, video, plain, _plain)
        for dataset, video in sorted({(dialogue.dataset, dialogue.video_id) for dialogue in dialogues})
    }
    files: dict[str, dict[str, str]] = defaultdict(dict)
    for (dataset, video), urls in fitting.items():
        files[video] |= dict.fromkeys(urls, dataset)
    found = {video: next(iter(urls)) for video, urls in files.items() if len(urls) == 1}
    ambiguous = [_ambiguous(video, urls) for video, urls in files.items() if len(urls) > 1]
    missing = [video for video, urls in files.items() if not urls]
    return VideoFiles(found, ambiguous, _nearest(missing, plain))


def _fitting(dataset: str, video: str, files: Mapping[str, list[str]], spelt: Callable[[str], str] = str) -> list[str]:
    """The files of a video; one that is linked to from elsewhere counts once."""
    names = {spelt(video), spelt(file_stem(dataset, video))}
    urls = sorted({url for name in names for url in files.get(name, ())})
    if len(urls) > 1:
        folders = {dataset, dataset_name(dataset)}
        urls = [url for url in urls if folders & set(url.split("/")[:-1])] or urls
    return list({os.path.realpath(url) if "://" not in url else url: url for url in reversed(urls)}.values())[::-1]


def _ambiguous(video: str, urls: Mapping[str, str]) -> QuarantinedRecord:
    reason = f"it may be {' or '.join(sorted(urls))}; rename one, or move it out of `data.videos`"
    return QuarantinedRecord(next(iter(urls.values())), video, "video", reason)


def _nearest(missing: list[str], files: Mapping[str, list[str]]) -> dict[str, str]:
    nearest = {}
    for video in missing[:_MOST_COMPARED]:
        if close := difflib.get_close_matches(_plain(video), files, n=1):
            nearest[video] = files[close[0]][0]
    return nearest


def _plain(name: str) -> str:
    """A name without what people and file systems spell in two ways: case, and letters with accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _names(url: str) -> Iterator[str]:
    """The ids of videos that this file may hold."""
    *folders, file = url.rsplit("/", 3)
    stem, dot, suffix = file.rpartition(".")
    kind = f"{dot}{suffix}".lower()
    if kind == FRAMES_SUFFIX and folders[-1:] == ["frames"]:
        yield stem
    if kind in VIDEO_SUFFIXES:
        for name in (stem, file):
            yield name
            yield from ("/".join([*folders[-depth:], name]) for depth in range(1, len(folders)))  # P01/P01_02
        yield f"{folders[-1]}__{stem}"  # Assembly101's <recording>/<camera>.mp4
        if stem in _NAMED_BY_FOLDER:
            yield folders[-2]


def feature_files(settings: DataSettings, dialogues: Iterable[Dialogue], encoder: str = "") -> dict[str, str]:
    """The file of ProAssist's features, by path or URL, of each video in the tree that a dialogue is about.

    Args:
        settings: of the source `proassist`.
        dialogues: the source's, as `load_dialogues` gives them.
        encoder: the folder below `features/`; may be left out where a data set has only one.

    Raises:
        ConfigError: a data set has several encoders' features, or none of this one.
        DataError: there are no features.
    """
    folders = {}
    for dataset in datasets_of(settings):
        folder = f"{settings.path}/{dataset}/features"
        if encoders := list_folders(folder):
            folders[dataset] = f"{folder}/{_chosen(encoders, encoder, folder)}"
    if not folders:
        raise DataError(f"data.path: {settings.path} holds no <dataset>/features/<encoder>", field="data.path")
    there = {url for folder in folders.values() for url in list_files(folder, f"*{FRAMES_SUFFIX}")}
    videos = {(dialogue.dataset, dialogue.video_id) for dialogue in dialogues if dialogue.dataset in folders}
    named = {video: f"{folders[name]}/{file_stem(name, video)}{FRAMES_SUFFIX}" for name, video in sorted(videos)}
    return {video: url for video, url in named.items() if url in there}


def _chosen(encoders: list[str], encoder: str, folder: str) -> str:
    if encoder in encoders or (not encoder and len(encoders) == 1):
        return encoder or encoders[0]
    what = f"{encoder!r} must be one of" if encoder else "name one of"
    raise ConfigError(f"encoder: {what} {', '.join(encoders)}, the features in {folder}", field="encoder")
