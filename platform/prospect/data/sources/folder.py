"""A folder of videos and `dialogues.json`: video id -> a canonical record without its id, or a list of records.

{"wtag_1": {"dataset": "wtag", "goal": "Make a mug cake", "turns": [{"time": 3.5, "role": "user", "text": "Hi"}]}}
"""

from collections.abc import Iterator

from prospect.data.sources.base import Raw, Reader
from prospect.data.sources.canonical import FIELDS, convert
from prospect.data.sources.files import RepeatedKeys


def elements(document: Raw) -> Iterator[Raw]:
    """One record for each video; another value becomes an empty record, whose missing fields are named.

    An id that is there twice has two records. An element of a list is a record already.
    """
    if document.keys() & FIELDS.names.keys() and not any(isinstance(value, dict) for value in document.values()):
        yield document
        return
    later = document.later if isinstance(document, RepeatedKeys) else ()
    for video_id, entry in [*document.items(), *later]:
        yield (entry if isinstance(entry, dict) else {}) | {"video_id": video_id}


READER = Reader(patterns=("dialogues.json",), fields=FIELDS, convert=convert, elements=elements)
