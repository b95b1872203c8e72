"""Small pictures of a video for a page: exact pictures of the model's frames, evenly spaced, as JPEG data."""

import base64
import io
import itertools
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from prospect.dialogue.timeline import FPS
from prospect.vision.arrow import is_frames_file
from prospect.vision.video import VideoInfo, probe, sample_frames

SIDE = 160
"""Longer side, px."""
QUALITY = 70


@dataclass(frozen=True)
class Thumbnail:
    """The picture of one frame."""

    frame: int
    """The model's frame, at `FPS`, that this is the picture of."""
    first: int
    """The picture stands for frames [first, frame]."""
    uri: str
    """`data:image/jpeg;base64,...`"""


def thumbnails(video: str | Path, most: int) -> tuple[int, list[Thumbnail]]:
    """(T, at most `most` pictures of `video`), upright and in its own aspect ratio.

    Only every `stride`-th frame is sampled: the last picture before the end of `stride` frames is the picture of
    the last one of them, because both rules are `sample_frames`'s. A frames file is read as it is.

    Raises:
        DataError: no such video can be sampled; the sentence names the path and the reason.
    """
    info = probe(video)
    stride = math.ceil(info.num_frames / most)
    size = _size(info)
    pictures: Iterator[np.ndarray]
    if is_frames_file(str(video)):
        pictures = itertools.islice(sample_frames(video, size=SIDE, crop="squash"), stride - 1, None, stride)
    else:
        pictures = sample_frames(video, fps=FPS / stride, size=SIDE, crop="squash")
    shown = []
    for number, picture in enumerate(pictures):
        last = (number + 1) * stride - 1
        shown.append(Thumbnail(last, number * stride, _jpeg(Image.fromarray(picture).resize(size))))
    return info.num_frames, shown


def pictures_of(video: str | Path, frames: Collection[int], side: int = SIDE) -> dict[int, str]:
    """The pictures of some of the model's frames, as `Thumbnail.uri`; reads the video up to the last of them.

    Args:
        video: path or URL of its file.
        frames: which; those past the end are left out.
        side: longer side of a picture, px.

    Raises:
        DataError: as `thumbnails`.
    """
    if not frames:
        return {}
    wanted, last = set(frames), max(frames)
    size = _size(probe(video), side)
    sampled = itertools.islice(sample_frames(video, fps=FPS, size=side, crop="squash"), last + 1)
    return {
        frame: _jpeg(Image.fromarray(picture).resize(size)) for frame, picture in enumerate(sampled) if frame in wanted
    }


def _size(info: VideoInfo, side: int = SIDE) -> tuple[int, int]:
    """Of a picture in the video's own aspect ratio."""
    scale = side / max(info.width, info.height)
    return max(1, round(info.width * scale)), max(1, round(info.height * scale))


def _jpeg(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
