"""Finds the files of a video id: the video, ProAssist's frames, or ProAssist's features."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

from prospect.data.sources.files import is_folder, list_files, list_folders
from prospect.data.sources.names import file_stem
from prospect.data.sources.proassist_tree import datasets_of
from prospect.data.sources.settings import DataSettings
from prospect.dialogue.schema import Dialogue
from prospect.errors import ConfigError, DataError

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpeg", ".mpg"})
FRAMES_SUFFIX = ".arrow"
"""ProAssist's pictures at 2 frames a second, in a folder `frames`."""

_NAMED_BY_FOLDER = frozenset({"Video_pitchshift", "Video"})
"""HoloAssist's `<id>/Export_py/Video_pitchshift.mp4` and WTaG's `<id>/Video/Video.mpeg`."""


def find_videos(folder: str, dialogues: Iterable[Dialogue]) -> dict[str, str]:
    """The file, by path or URL, of each video under `folder` that a dialogue is about.

    A file is named after the video id or its `file_stem`, or lies as the data sets' own releases have it; two
    ids may share one.

    Raises:
        DataError: the folder is missing, or two files fit one id.
    """
    if not is_folder(folder):
        raise DataError(f"data.videos: {folder} does not exist", field="data.videos")
    files = defaultdict(list)
    for url in list_files(folder, "*.*", recursive=True):
        for name in _names(url):
            files[name].append(url)
    found: dict[str, str] = {}
    for dataset, video in sorted({(dialogue.dataset, dialogue.video_id) for dialogue in dialogues}):
        fitting = sorted({url for name in (video, file_stem(dataset, video)) for url in files[name]})
        if len(fitting) > 1:
            raise DataError(f"data.videos: video {video!r} is both {' and '.join(fitting)}", field="data.videos")
        if fitting:
            found[video] = fitting[0]
    return found


def _names(url: str) -> Iterator[str]:
    """The ids of videos that this file may hold."""
    *folders, file = url.rsplit("/", 3)
    stem, dot, suffix = file.rpartition(".")
    suffix = f"{dot}{suffix}".lower()
    if suffix == FRAMES_SUFFIX and folders[-1:] == ["frames"]:
        yield stem
    if suffix in VIDEO_SUFFIXES:
        yield stem
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
