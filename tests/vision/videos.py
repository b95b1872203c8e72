"""Small videos drawn for the tests: each picture's brightness says which one it is."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

TIME_BASE = Fraction(1, 12_000)


def brightness(index: int) -> int:
    """Steps of 8 survive lossy coding."""
    return 16 + 8 * (index % 27)


def flat_picture(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    return np.full((height, width, 3), brightness(index), np.uint8)


def index_of(picture: np.ndarray) -> int:
    """Which picture of `write_video` this is (modulo 27)."""
    return round((float(picture.mean()) - 16) / 8)


def write_video(
    path: Path,
    times: Sequence[float],
    pictures: Sequence[np.ndarray] | None = None,
    *,
    rate: int = 30,
    rotation: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """A video whose pictures stand at `times` (seconds); `options` go to the container's writer."""
    pictures = [flat_picture(index) for index in range(len(times))] if pictures is None else pictures
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "10", "bf": "0"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = TIME_BASE
        if rotation:
            stream.set_display_rotation(rotation)
        for time, picture in zip(times, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time / TIME_BASE), TIME_BASE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """A file with an audio stream only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
