"""A folder of videos and `dialogues.json`: video id -> a canonical record without its id.

{"wtag_1": {"dataset": "wtag", "goal": "Make a mug cake", "turns": [{"time": 3.5, "role": "user", "text": "Hi"}]}}
"""

from collections.abc import Iterator

from prospect.data.sources.base import Raw, Reader
from prospect.data.sources.canonical import convert


def split(document: Raw) -> Iterator[Raw]:
    """One record for each video; another value becomes an empty record, whose missing fields are named."""
    for video_id, entry in document.items():
        yield {**(entry if isinstance(entry, dict) else {}), "video_id": video_id}


READER = Reader(patterns=("dialogues.json",), convert=convert, split=split)
