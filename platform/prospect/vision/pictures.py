"""Decoding and resizing of pictures, the same for recorded video and live sessions."""

import io
import threading
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from PIL import Image, ImageOps, UnidentifiedImageError

from prospect.errors import DataError
from prospect.vision.colour import Colour, read_colour, tone_map
from prospect.vision.settings import Crop

_SCALE = "flags=bicubic+accurate_rnd+full_chroma_int+bitexact:param0=0:param1=0.5:sws_dither=none:out_range=full"
"""swscale's options: `accurate_rnd` avoids bias, `bitexact` gives the same bits on every processor."""

MAX_PIXELS = 64_000_000
"""Pixels of the largest picture accepted live; checked before it is decompressed."""


class Scaler:
    """Crops, resizes and converts decoded pictures; reuses its filter graph while their format stays the same.

    Not thread-safe.
    """

    def __init__(self, size: int, crop: Crop) -> None:
        self._size = size
        self._crop = crop
        self._key: tuple[object, ...] = ()
        self._graph = Graph()

    def __call__(self, frame: VideoFrame, pixel_aspect: Fraction | None = None) -> np.ndarray:
        """Convert a decoded picture to uint8 [size, size, 3], upright, SDR.

        Args:
            frame: of any pixel format.
            pixel_aspect: width by height of one pixel; None for square ones.

        Raises:
            DataError: the size or colour cannot be converted.
        """
        colour = read_colour(frame)
        key = (frame.width, frame.height, frame.format.name, colour, pixel_aspect)
        try:
            if key != self._key:
                self._graph = self._build(frame, colour, pixel_aspect or Fraction(1))
                self._key = key
            self._graph.vpush(frame)
            picture = self._graph.vpull().to_ndarray()
        except (av.FFmpegError, ValueError) as error:
            self._key = ()
            raise DataError(
                f"picture of {frame.width}x{frame.height} ({frame.format.name}) "
                f"cannot be resized to {self._size}x{self._size}: {error}"
            ) from error
        return upright(tone_map(picture, colour.transfer) if colour.is_hdr else picture, frame)

    def _build(self, frame: VideoFrame, colour: Colour, pixel_aspect: Fraction) -> Graph:
        graph = Graph()
        graph.threads = 1
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, av.time_base)
        )
        width, height = self._kept(frame.width, frame.height, pixel_aspect)
        # Chroma has half the resolution: a crop that starts at an odd pixel would shift the colours.
        left, top = (frame.width - width) // 4 * 2, (frame.height - height) // 4 * 2
        matrix, full = colour.matrix, "full" if colour.full_range else "limited"
        graph.link_nodes(
            source,
            graph.add("crop", f"{width}:{height}:{left}:{top}:exact=1"),
            graph.add("scale", f"{self._size}:{self._size}:{_SCALE}:in_color_matrix={matrix}:in_range={full}"),
            graph.add("format", "rgb48le" if colour.is_hdr else "rgb24"),
            graph.add("buffersink"),
        ).configure()
        return graph

    def _kept(self, width: int, height: int, pixel_aspect: Fraction) -> tuple[int, int]:
        """Compute width and height of the crop, in pixels; `centre` keeps a square as it is displayed."""
        if self._crop == "squash":
            return width, height
        displayed = width * pixel_aspect
        if displayed > height:
            return max(1, round(height / pixel_aspect)), height
        return width, max(1, round(displayed))


_scalers = threading.local()


def resize_picture(picture: np.ndarray, size: int, crop: Crop) -> np.ndarray:
    """Resize uint8 [H, W, 3] to uint8 [size, size, 3]; a picture of that size is returned unchanged.

    Raises:
        DataError: the sides differ too much to be resized.
    """
    if picture.shape == (size, size, 3):
        return picture
    scaler: Scaler | None = getattr(_scalers, f"{crop}{size}", None)
    if scaler is None:
        scaler = Scaler(size, crop)
        setattr(_scalers, f"{crop}{size}", scaler)
    return scaler(VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24"))


def upright(picture: np.ndarray, frame: VideoFrame) -> np.ndarray:
    """Apply the frame's display matrix to [H, W, ...]: pixel (x, y) moves to (ax + cy, bx + dy)."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return picture
    a, b, _, c, d = np.frombuffer(bytes(cast(SideData, side_data)), np.int32)[:5]
    if abs(b) > abs(a):
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def decode_picture(data: bytes) -> np.ndarray:
    """A JPEG or PNG as uint8 [H, W, 3], upright as its EXIF says.

    Raises:
        DataError: the bytes are no JPEG or PNG, are cut short, or hold too large a picture.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"image of {image.width}x{image.height} is larger than {MAX_PIXELS} pixels; send a smaller one",
                    field="image",
                )
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except UnidentifiedImageError:
        raise DataError(f"image of {len(data)} bytes is neither a JPEG nor a PNG", field="image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"image of {len(data)} bytes cannot be decoded: {error}", field="image") from error
