"""Small videos drawn for the tests: each picture's brightness says which one it is."""

import base64
import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
from av.container import OutputContainer
from PIL import Image
from pyarrow import ipc

TIME_BASE = Fraction(1, 12_000)

PLAIN = {"crf": "10", "bf": "0"}
"""What libx264 is told unless a test wants something else."""

QUIET_HEVC = {"preset": "ultrafast", "crf": "10", "x265-params": "log-level=none:bframes=0"}
"""Without B-frames: of a single picture with them, x265 makes up a decoding time that the container may refuse."""


def brightness(index: int) -> int:
    """Steps of 8 survive lossy coding."""
    return 16 + 8 * (index % 27)


def flat_picture(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    return np.full((height, width, 3), brightness(index), np.uint8)


def index_of(picture: np.ndarray) -> int:
    """Which picture of `write_video` this is (modulo 27)."""
    return round((float(picture.mean()) - 16) / 8)


def panorama(number: int, width: int = 64, height: int = 48, seed: int = 0) -> list[np.ndarray]:
    """Pictures of a camera that turns over a textured scene, so that each is predicted from others."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 12, 3), np.uint8)
    scene = np.asarray(Image.fromarray(coarse).resize((4 * width, height), Image.Resampling.BICUBIC))
    return [np.roll(scene, -5 * index, axis=1)[:, :width] for index in range(number)]


def write_video(
    path: Path,
    times: Sequence[float],
    pictures: Sequence[np.ndarray] | None = None,
    *,
    rate: int = 30,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    codec: str = "libx264",
    encoder: dict[str, str] | None = None,
    pixels: str = "yuv420p",
    sound_s: float = 0,
    **context: Any,
) -> Path:
    """A video whose pictures stand at `times` (seconds).

    Args:
        path: where to; its suffix names the container.
        times: seconds, one a picture.
        pictures: uint8 or uint16 [H, W, 3]; flat ones of `brightness` unless given.
        rate: nominal pictures a second.
        rotation: degrees that a player is to turn it by.
        options: for the container's writer.
        codec: FFmpeg's name of the encoder.
        encoder: its options.
        pixels: its pixel format.
        sound_s: seconds of silence beside the pictures.
        **context: attributes of the codec context, such as its colours.
    """
    pictures = [flat_picture(index) for index in range(len(times))] if pictures is None else pictures
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=PLAIN if encoder is None else encoder)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = TIME_BASE
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=16_000, layout="mono") if sound_s else None
        for time, picture in zip(times, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(picture), format="rgb24" if picture.dtype == np.uint8 else "rgb48le"
            ).reformat(format=pixels, dst_colorspace=context.get("colorspace"), dst_color_range=1)
            frame.pts, frame.time_base = round(time / TIME_BASE), TIME_BASE
            container.mux(stream.encode(frame))
        if sound is not None:
            _write_silence(container, sound, sound_s)
        container.mux(stream.encode())
    return path


def write_transparent(path: Path, picture: np.ndarray, codec: str, pixels: str) -> Path:
    """A video of one picture, uint8 [H, W, 4], shown for a second; WebM stores its alpha beside the pictures."""
    with av.open(str(path), "w") as container:
        options = {"auto-alt-ref": "0", "crf": "4", "b": "2M"} if codec.startswith("libvpx") else {}
        stream = container.add_stream(codec, rate=2, options=options)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = pixels
        if path.suffix == ".webm":
            stream.metadata["alpha_mode"] = "1"
        for number in range(2):
            frame = av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format=pixels)
            frame.pts, frame.time_base = number, Fraction(1, 2)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    """A file with an audio stream only."""
    with av.open(str(path), "w") as container:
        _write_silence(container, container.add_stream("aac", rate=16_000, layout="mono"), 1)
    return path


def _write_silence(container: OutputContainer, stream: Any, seconds: float) -> None:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, int(16_000 * seconds)), np.float32), format="fltp", layout="mono")
    frame.sample_rate = 16_000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())


def turn_mp4(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Writes (a, b, c, d) into the display matrix of an mp4's picture track."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    for offset, value in zip((0, 4, 12, 16), matrix, strict=True):
        data[at + offset : at + offset + 4] = (value << 16).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path


def write_frames_file(path: Path, rows: Sequence[np.ndarray | str | None], *, stream: bool = True) -> Path:
    """A frames file as ProAssist writes it, in Arrow's stream or file format; text stands for a row of its own."""
    texts = [_jpeg(row) if isinstance(row, np.ndarray) else row for row in rows]
    table = pa.table({"frame": pa.array(texts, pa.string())})
    with (ipc.new_stream if stream else ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    return path


def _jpeg(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=95)
    return base64.b64encode(file.getvalue()).decode()
