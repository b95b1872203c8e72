"""Sampling of videos: one picture a frame (docs/architecture.md#events-and-frames)."""

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
from av.video.frame import VideoFrame

from prospect.dialogue.timeline import FPS, num_frames
from prospect.vision import arrow
from prospect.vision.decode import LostPictureError, VideoReader, open_container, open_video
from prospect.vision.pictures import Scaler, upright
from prospect.vision.settings import Crop


@dataclass(frozen=True)
class VideoInfo:
    """Length and size of a video."""

    duration_s: float
    """Seconds from the first picture to the end of the last."""
    width: int
    """Pixels, upright."""
    height: int
    num_frames: int
    """T: how many pictures `sample_frames` yields."""


def probe(path: str | os.PathLike[str], *, fps: float = FPS) -> VideoInfo:
    """Measure a video or a frames file; decodes one picture only.

    Raises:
        DataError: the video cannot be sampled; the message names path and reason.
    """
    path = os.fspath(path)
    if arrow.is_frames_file(path):
        rows, (height, width) = arrow.measure(path, fps)
        return VideoInfo(rows / fps, width, height, rows)
    with open_video(path) as video:
        for _ in video.packets():
            pass
        duration = video.end
        height, width = upright(np.empty((video.first.height, video.first.width, 0), np.uint8), video.first).shape[:2]
    return VideoInfo(duration, width, height, num_frames(duration, fps))


def header_seconds(path: str) -> float | None:
    """Length of a video as its header states it, or of a frames file; None where the header does not say.

    Reads a few kilobytes, where `probe` reads the file. The two differ by a picture or so.

    Raises:
        DataError: the file cannot be read, or holds no moving pictures.
    """
    if arrow.is_frames_file(path):
        return arrow.measure(path, FPS)[0] / FPS
    with open_container(path) as (container, stream):
        if stream.duration is not None and stream.time_base is not None:
            return float(stream.duration * stream.time_base)
        return None if container.duration is None else container.duration / av.time_base


def sample_frames(path: str | os.PathLike[str], *, fps: float = FPS, size: int, crop: Crop) -> Iterator[np.ndarray]:
    """Yield exactly T = `num_frames(duration, fps)` pictures, uint8 [size, size, 3], in order.

    Frame k's picture is the last source picture with pts < (k+1)/fps, where time 0 is the first pts. One
    decoded picture is held at a time, so memory does not grow with the video's length. A frames file
    (`.arrow`) has one picture a row.

    Args:
        path: a local path or the URL of a video.
        fps: frames a second.
        size: side of the square pictures, pixels.
        crop: how a picture becomes a square.

    Raises:
        DataError: missing, empty, without a video stream, truncated or corrupted. Damage is found only where it
            lies, so use no picture before the last one has come.
    """
    path = os.fspath(path)
    if arrow.is_frames_file(path):
        yield from arrow.read_pictures(path, fps, size, crop)
    else:
        yield from _sample_video(path, fps, size, crop)


def _sample_video(path: str, fps: float, size: int, crop: Crop) -> Iterator[np.ndarray]:
    """Decode only what is needed; if the decoder then loses a sampled picture, decode everything from there on."""
    scale, given = Scaler(size, crop), 0
    for skip in (True, False):
        with open_video(path) as video:
            try:
                for frame, times in itertools.islice(_shown(video, fps, skip), given, None):
                    yield from itertools.repeat(scale(frame, video.stream.sample_aspect_ratio), times)
                    given += 1
                return
            except LostPictureError:
                continue


def _shown(video: VideoReader, fps: float, skip: bool) -> Iterator[tuple[VideoFrame, int]]:
    """Yield each sampled picture with the number of frames that show it."""
    held: tuple[int, VideoFrame] | None = None
    for interval, frame in video.pictures(fps, skip=skip):
        if held is not None:
            yield held[1], interval - held[0]
        held = interval, frame
    if held is not None:
        yield held[1], num_frames(video.end, fps) - held[0]
