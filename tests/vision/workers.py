"""A decoder for the embedding job's test; in a module of its own because Ray's processes import it by name."""

import os
from collections.abc import Iterator

from prospect.vision.stages import DecodeVideo, Row


class Dying(DecodeVideo):
    """Its process ends at a certain video, after the first batch, as by a decoder's crash."""

    def __call__(self, row: Row) -> Iterator[Row]:
        for part in super().__call__(row):
            yield part
            if row["video_id"] == "deadly":
                os._exit(1)
