"""A decoder for the embedding job's test; in a module of its own because Ray's processes import it by name."""

import os
from collections.abc import Iterator

from prospect.vision.stages import DecodeVideo, PictureBatch, StageRow, item_of


class Dying(DecodeVideo):
    """Its process ends at a certain video, before its last batch, as by a decoder's crash."""

    def __call__(self, row: StageRow) -> Iterator[StageRow]:
        for part in super().__call__(row):
            item = item_of(part)
            if row["video_id"] == "deadly" and isinstance(item, PictureBatch) and item.source_hash:
                os._exit(1)
            yield part
