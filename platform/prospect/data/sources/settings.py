"""Where dialogues and videos come from."""

import os
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from prospect.data.sources.files import is_folder
from prospect.settings import Settings


def _location(value: Any) -> Any:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        return text
    return text.rstrip("/") if "://" in text else os.path.normpath(os.path.expanduser(text))


Location = Annotated[str, BeforeValidator(_location)]
"""A local path, in which `~` is the home folder, or a URL of any file system that pyarrow or fsspec opens."""


class DataSettings(Settings):
    """Where dialogues and videos come from."""

    source: str
    """Name of the reader; docs/data.md has each one's format."""
    path: Location
    """A file of records, or a folder of them; for `proassist` the folder `processed_data`. A path or a URL."""
    videos: Location | None = None
    """Folder, by path or URL, of video files named after their video id, at any depth; default: that of `path`."""
    datasets: tuple[str, ...] = ()
    """Only records of these data sets; empty: all."""
    num_rows: int = Field(default=-1, ge=-1)
    """At most this many rows of each split, in file order; -1: all. A row is a line, or a video with its dialogues."""
    suffix: str = ""
    """What stands behind the split in the names of ProAssist's dialogue files: `_filtered`."""
    prepared: str = ""
    """ProAssist's prepared samples of this kind and size, `dialog-klg_L4096_I1`; empty: the generated dialogues."""
    splits: tuple[str, ...] = ()
    """Only these of train, validation (or val) and test; empty: all."""
    holdout: int | tuple[str, ...] = ()
    """Which videos are the test split where the source has none: their ids, or how many (drawn by hash of the id)."""

    @property
    def video_folder(self) -> str:
        """Where videos are looked for."""
        return self.videos or (self.path if is_folder(self.path) else os.path.dirname(self.path) or ".")
