"""A worker for the embedding job's test; in a module of its own because Ray's processes import it by name."""

import os
from typing import Any

from prospect.vision import job


class Dying(job._EmbedVideo):
    """Its process ends at a certain video, as by a decoder's crash."""

    def __call__(self, row: dict[str, str]) -> dict[str, Any]:
        if row["video_id"] == "deadly":
            os._exit(1)
        return super().__call__(row)
