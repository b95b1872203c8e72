"""A streamed dialogue with the refreshes of its context, in memory and as JSON. Imports no torch: drivers read it."""

from dataclasses import dataclass
from functools import cache
from typing import Self

from pydantic import TypeAdapter

from prospect.evaluation.records import Placed, VideoDecisions, scored_frames
from prospect.streaming.types import Decision, Refreshed


@dataclass(frozen=True)
class Stream:
    """What the engine did with one dialogue, without the dialogue."""

    decisions: list[Decision]
    refreshes: list[Refreshed]

    @classmethod
    def of(cls, video: VideoDecisions) -> Self:
        return cls(list(video.decisions), list(video.refreshes))

    def beside(self, placed: Placed) -> VideoDecisions:
        """The stream beside its dialogue."""
        return VideoDecisions(*placed, self.decisions, scored_frames(*placed).start, self.refreshes)

    def to_json(self) -> str:
        """Compact JSON: what has its default is left out."""
        return _adapter().dump_json(self, exclude_defaults=True).decode()

    @classmethod
    def from_json(cls, text: str) -> "Stream":
        """The inverse of `to_json`.

        Raises:
            pydantic.ValidationError: the text is not such a stream.
        """
        return _adapter().validate_json(text)


@cache
def _adapter() -> TypeAdapter[Stream]:
    return TypeAdapter(Stream)
