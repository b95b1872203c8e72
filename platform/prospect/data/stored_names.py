"""File names of videos in an embedding store: the percent-encoded id, or where that cannot serve, one with a hash.

A name with a hash holds `=`, which percent-encoding never leaves in an id. The file's header has the id.
"""

import hashlib
from urllib.parse import quote, unquote

from prospect.errors import DataError

SUFFIX = ".safetensors"

MAX_NAME = 240
"""Bytes of the longest percent-encoded name; file systems take 255."""

_HASH_MARK = "="
_BEGINNING = 160
"""Bytes of the encoded id that stay readable in a name with a hash."""


def plain_name(video_id: str) -> str | None:
    """Return the percent-encoded id as a file name, or None if that is too long.

    Raises:
        DataError: the id is empty or holds half a character.
    """
    name = _encode(video_id) + SUFFIX
    return name if len(name) <= MAX_NAME else None


def hashed_name(video_id: str) -> str:
    """Return a file name with the beginning of the id and its SHA-256, for long ids and ids that differ by case alone.

    Raises:
        DataError: as `plain_name`.
    """
    beginning = _encode(video_id)[:_BEGINNING]
    cut = beginning.rfind("%", len(beginning) - 2)
    digest = hashlib.sha256(video_id.encode()).hexdigest()
    return f"{beginning[:cut] if cut >= 0 else beginning}{_HASH_MARK}{digest[:32]}{SUFFIX}"


def id_of(name: str) -> str | None:
    """Return the video id that a file name encodes, or None if only the file's header tells it."""
    return None if _HASH_MARK in name else unquote(name.removesuffix(SUFFIX))


def _encode(video_id: str) -> str:
    try:
        encoded = quote(video_id, safe="")
    except UnicodeEncodeError:
        encoded = ""
    if not encoded:
        raise DataError(f"video_id ({video_id!r}) must be text of one or more whole characters", field="video_id")
    return encoded
