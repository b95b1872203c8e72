"""A folder of videos and `dialogues.json`: video id -> a canonical record without its id.

{"wtag_1": {"dataset": "wtag", "goal": "Make a mug cake", "turns": [{"time": 3.5, "role": "user", "text": "Hi"}]}}
"""

from collections.abc import Iterator

from prospect.data.sources.base import Raw, Reader
from prospect.data.sources.canonical import convert
from prospect.errors import DataError


def split(document: Raw) -> Iterator[Raw]:
    """One record for each video."""
    for video_id, entry in document.items():
        if not isinstance(entry, dict):
            raise DataError(f"{video_id!r} must hold a record with turns, not {entry!r:.60}", field=video_id)
        yield {**entry, "video_id": video_id}


READER = Reader(patterns=("dialogues.json",), convert=convert, split=split)
