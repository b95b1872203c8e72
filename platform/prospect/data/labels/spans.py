"""Turns blocks assigned to steps into one span a step: points get durations, small overlaps are trimmed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prospect.dialogue.schema import Annotation, Step
from prospect.errors import DataError
from prospect.settings import Settings

_PAST_END_S = 0.5
"""Allowed difference between the clocks of pictures and annotations (docs/data.md)."""


class SpanSettings(Settings):
    """Durations of points, and the largest overlap that is trimmed."""

    point_seconds: Mapping[str, float] = {"screw": 6.0, "attach": 10.0, "demonstrate": 12.0}
    """Seconds of a line without an end, by the start of one of its words (`screw` covers `screws`)."""
    other_point_seconds: float = 8.0
    """Seconds of every other line without an end."""
    max_overlap_s: float = 5.0
    """Neighbouring steps that overlap by up to this many seconds meet in the middle; larger overlaps are reported."""


@dataclass(frozen=True)
class Overlap:
    """Two steps whose spans overlap, kept as annotated."""

    first: str
    second: str
    seconds: float

    def __str__(self) -> str:
        return f"steps {self.first} and {self.second} overlap by {self.seconds:.1f} s"


def block_ends(
    blocks: Sequence[Annotation], settings: SpanSettings, video_end: float | None = None
) -> NDArray[np.float64]:
    """[B] end of each block in seconds.

    A point, or a line that ends where it starts, gets the duration of its verb, at most to the next later start of
    a line and to the end of the video.
    """
    starts = np.array([block.start for block in blocks])
    later = np.sort(starts)
    ends = np.empty(len(blocks))
    for index, block in enumerate(blocks):
        if block.end is not None and block.end > block.start:
            ends[index] = block.end
            continue
        ends[index] = block.start + _point_seconds(block.text, settings)
        following = np.searchsorted(later, block.start, side="right")
        if following < len(later):
            ends[index] = min(ends[index], later[following])
    return ends if video_end is None else np.maximum(starts, np.minimum(ends, video_end))


def spans_of(
    steps: Sequence[Step],
    blocks: Sequence[Annotation],
    assignment: Sequence[int],
    confidences: Sequence[float],
    source: str,
    settings: SpanSettings,
    video_end: float | None = None,
) -> tuple[tuple[Step, ...], tuple[Overlap, ...]]:
    """The steps with their spans, and the overlaps that are too large to trim.

    A span goes from the first start to the last end of the step's blocks. `assignment` has the index of a step
    for each block, or -1 for one of no step, `confidences` one number a step, `source` names the method.

    Raises:
        DataError: a block starts more than 0.5 s past the end of the video.
    """
    for block in blocks:
        if video_end is not None and block.start > video_end + _PAST_END_S:
            where = f"line {block.text!r} starts at {block.start:.1f} s, past the end of the video at {video_end:.1f} s"
            raise DataError(f"annotations: {where}; correct its time or leave it out", field="annotations")
    of_block = np.asarray(assignment)
    last = np.inf if video_end is None else video_end
    starts = np.minimum([block.start for block in blocks], last)
    ends = np.maximum(starts, np.minimum(block_ends(blocks, settings), last))
    numbers = range(len(steps))
    begins = np.array([starts[of_block == number].min() for number in numbers])
    finishes = np.array([ends[of_block == number].max() for number in numbers])
    _meet_in_the_middle(begins, finishes, settings.max_overlap_s)
    timed = tuple(
        Step(id=step.id, name=step.name, start=begin, end=finish, confidence=confidence, source=source)
        for step, begin, finish, confidence in zip(steps, begins.tolist(), finishes.tolist(), confidences, strict=True)
    )
    return timed, tuple(_overlaps([step.id for step in steps], begins.tolist(), finishes.tolist()))


def _point_seconds(text: str, settings: SpanSettings) -> float:
    """By the first verb of the text that has a duration."""
    for word in re.findall(r"[a-z]+", text.lower()):
        for verb, seconds in settings.point_seconds.items():
            if word.startswith(verb):
                return seconds
    return settings.other_point_seconds


def _meet_in_the_middle(begins: NDArray[np.float64], finishes: NDArray[np.float64], largest: float) -> None:
    """Trim overlaps in place, except where the later step would lose its span or its place in the order."""
    following = np.append(begins[2:], np.inf)
    for number in range(len(begins) - 1):
        overlap = finishes[number] - begins[number + 1]
        middle = begins[number + 1] + overlap / 2
        if 0 < overlap <= largest and middle < finishes[number + 1] and middle <= following[number]:
            finishes[number] = begins[number + 1] = middle


def _overlaps(ids: Sequence[str], begins: Sequence[float], finishes: Sequence[float]) -> Iterator[Overlap]:
    """Overlaps of each step with the longest-lasting earlier step."""
    lasting = 0
    for number in range(1, len(ids)):
        if finishes[lasting] > begins[number]:
            seconds = min(finishes[lasting], finishes[number]) - begins[number]
            yield Overlap(ids[lasting], ids[number], seconds)
        if finishes[number] > finishes[lasting]:
            lasting = number
