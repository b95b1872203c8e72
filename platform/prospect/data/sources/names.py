"""Names of splits, and what follows from a video id: the name of its files and the recording it shows."""

import re

SPLITS = ("train", "validation", "test")
"""From the least to the most held out."""

_SPLIT_SYNONYMS = {
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "development": "validation",
    "testing": "test",
}
_FOLDERS = {"ego4d-goalstep": "ego4d", "ego4d_goalstep": "ego4d", "epic_kitchens": "epickitchens"}
_TASK_PREFIX = re.compile(r"^(?:dis)?assembly_")


def split_name(name: str) -> str:
    """The project's name of a split; a name that is not known stays as it is."""
    plain = name.strip().lower()
    return _SPLIT_SYNONYMS.get(plain, plain if plain in SPLITS else name)


def dataset_name(name: str) -> str:
    """The name of a data set's folder in ProAssist's tree, where records use another one."""
    return _FOLDERS.get(name, name)


def file_stem(dataset: str, video_id: str) -> str:
    """Name, without suffix, of a video's file of frames, features or pictures.

    Assembly101's assembly and disassembly lie in one file of the recording, and Ego4D's groups of videos are
    named after the first one; so two video ids may share a file.
    """
    if dataset == "assembly101":
        return _TASK_PREFIX.sub("", video_id)
    if dataset.startswith("ego4d"):
        return video_id.removeprefix("grp-")
    return video_id


def recording_of(dataset: str, video_id: str) -> str:
    """The recording that a video shows, the same for all cameras and parts of an Assembly101 recording."""
    stem = file_stem(dataset, video_id)
    return stem.partition("__")[0] if dataset == "assembly101" else stem
