"""A video file as the pictures that the model sees: one a frame, at 2 frames a second (DESIGN 4.2)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from prospect.dialogue.timeline import FPS, frame_at, num_frames
from prospect.errors import DataError
from prospect.vision.pictures import Crop, resize_picture

SAMPLING_PHASE = "last-before-end"
"""Part of the fingerprint: frame k's picture is the last source picture with pts < (k+1)/fps."""

MISSING_S = 0.5
"""A video whose pictures end this much before the length that its container declares is truncated."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video's container says."""

    duration_s: float
    """Seconds from the first picture to the end of the last."""
    width: int
    """Pixels, upright."""
    height: int
    num_frames: int
    """T: how many pictures `sample_frames` yields."""


def probe(path: str | Path, *, fps: float = FPS) -> VideoInfo:
    """The length and size of a video; reads the packets' times and decodes one picture only.

    Raises:
        DataError: no such video can be sampled; the sentence names the path and the reason.
    """
    with _open(path) as (container, stream):
        spans: list[tuple[Fraction, Fraction]] = []
        picture: VideoFrame | None = None
        for packet in container.demux(stream):
            if picture is None:
                picture = next(iter(packet.decode()), None)
            if packet.pts is not None and not packet.is_discard:
                spans.append(_span(packet, stream))
        if picture is None or not spans:
            raise DataError(f"video {path} holds no picture")
        duration = max(end for _, end in spans) - min(start for start, _ in spans)
        _check_complete(path, container, stream, duration)
        height, width = _upright(np.empty((picture.height, picture.width, 0), np.uint8), picture).shape[:2]
    return VideoInfo(float(duration), width, height, num_frames(float(duration), fps))


def sample_frames(path: str | Path, *, fps: float = FPS, size: int, crop: Crop) -> Iterator[np.ndarray]:
    """Exactly T = `num_frames(duration, fps)` pictures, uint8 [size, size, 3], in order.

    Frame k's picture is the last source picture with pts < (k+1)/fps, where time 0 is the first pts. One
    decoded picture is held at a time, so memory does not grow with the video's length.

    Raises:
        DataError: missing, empty, without a video stream, truncated or corrupted. What is wrong further
            in is known only once it is reached, so use no picture before the last one has come.
    """
    with _open(path) as (container, stream):
        first: Fraction | None = None
        end, frame = Fraction(0), 0
        held: VideoFrame | None = None
        for source in container.decode(stream):
            if source.pts is None or source.is_corrupt:
                raise DataError(f"video {path} is corrupted after {float(end):.1f} s")
            start, stop = _span(source, stream)
            first = start if first is None else first
            reached = frame_at(float(start - first), fps)
            if held is not None and frame < reached:
                picture = resize_picture(_rgb(held), size, crop)
                while frame < reached:
                    yield picture
                    frame += 1
            held, end = source, max(end, stop - first)
        if held is None:
            raise DataError(f"video {path} holds no picture")
        _check_complete(path, container, stream, end)
        picture = resize_picture(_rgb(held), size, crop)
        for _ in range(frame, num_frames(float(end), fps)):
            yield picture


@contextmanager
def _open(path: str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens a video; errors of the decoder, here and while it is read, become one sentence."""
    if not os.path.isfile(path):
        raise DataError(f"video {path} does not exist")
    if os.path.getsize(path) == 0:
        raise DataError(f"video {path} is an empty file")
    try:
        with av.open(str(path)) as container:
            moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not moving:
                raise DataError(f"video {path} has no video stream")
            yield container, moving[0]
    except av.FFmpegError as error:
        raise DataError(f"video {path} is truncated, corrupted or no video: {error.strerror}") from error


def _span(picture: "Packet[VideoStream] | VideoFrame", stream: VideoStream) -> tuple[Fraction, Fraction]:
    """Seconds at which a picture begins and ends; one without a duration stands for the stream's mean period."""
    time_base = picture.time_base or stream.time_base or Fraction(1, av.time_base)
    start = (picture.pts or 0) * time_base
    if picture.duration:
        return start, start + picture.duration * time_base
    rate = stream.average_rate or stream.guessed_rate
    return start, start + (1 / rate if rate else 0)


def _check_complete(path: str | Path, container: InputContainer, stream: VideoStream, duration: Fraction) -> None:
    """Compares what was found with what is declared.

    Where only the container declares a length, a second stream (sound) may be the longer one.
    """
    declared = Fraction(0)
    if stream.duration is not None and stream.time_base is not None:
        declared = stream.duration * stream.time_base
    elif container.duration is not None and len(container.streams) == 1:
        declared = Fraction(container.duration, av.time_base)
    if duration < declared - Fraction(MISSING_S):
        raise DataError(f"video {path} is truncated: {float(duration):.1f} s of {float(declared):.1f} s can be read")


def _rgb(frame: VideoFrame) -> np.ndarray:
    return _upright(frame.to_ndarray(format="rgb24"), frame)


def _upright(picture: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Applies the frame's display matrix: a pixel (x, y) moves to (ax + cy, bx + dy)."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return picture
    a, b, _, c, d = np.frombuffer(bytes(cast(SideData, side_data)), np.int32)[:5]
    if abs(b) > abs(a):
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
