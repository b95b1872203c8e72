"""Decoding and resizing of pictures, the same for recorded video and live sessions."""

import io
import threading
from fractions import Fraction
from typing import Final, cast

import av
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideData
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from PIL import ExifTags, Image, UnidentifiedImageError

from prospect.errors import DataError
from prospect.messages import first_line
from prospect.vision.colour import ColourSpace, read_colour, tone_map
from prospect.vision.settings import Crop

_SCALE = "flags=bicubic+accurate_rnd+full_chroma_int+bitexact:param0=0:param1=0.5:sws_dither=none:out_range=full"
"""swscale's options: `accurate_rnd` avoids bias, `bitexact` gives the same bits on every processor."""

_OPAQUE = 65_535

MAX_PIXELS = 64_000_000
"""Pixels of the largest picture of a file; checked before it is decompressed."""
FORMATS = ("JPEG", "PNG", "WEBP")

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its EXIF orientation."""


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
        """Convert a decoded picture to uint8 [size, size, 3], upright, SDR, transparent parts on black.

        Args:
            frame: of any pixel format.
            pixel_aspect: width by height of one pixel; None for square ones.

        Raises:
            DataError: the size or colour cannot be converted.
        """
        shown, colour = frame, read_colour(frame)
        try:
            if has_alpha(frame.format):
                shown, colour = _composite(frame, colour)
            key = (shown.width, shown.height, shown.format.name, colour, pixel_aspect)
            if key != self._key:
                self._graph = self._build(shown, colour, pixel_aspect or Fraction(1))
                self._key = key
            self._graph.vpush(shown)
            picture = self._graph.vpull().to_ndarray()
        except (av.FFmpegError, ValueError) as error:
            self._key = ()
            raise DataError(
                f"picture of {frame.width}x{frame.height} ({frame.format.name}) "
                f"cannot be resized to {self._size}x{self._size}: {error}"
            ) from error
        return upright(tone_map(picture, colour.transfer) if colour.is_hdr else picture, frame)

    def _build(self, frame: VideoFrame, colour: ColourSpace, pixel_aspect: Fraction) -> Graph:
        width, height = self._kept(frame.width, frame.height, pixel_aspect)
        # Chroma has half the resolution: a crop that starts at an odd pixel would shift the colours.
        left, top = (frame.width - width) // 4 * 2, (frame.height - height) // 4 * 2
        return _graph(
            frame,
            ("crop", f"{width}:{height}:{left}:{top}:exact=1"),
            ("scale", f"{self._size}:{self._size}:{_SCALE}:{_input(colour)}"),
            ("format", "rgb48le" if colour.is_hdr else "rgb24"),
        )

    def _kept(self, width: int, height: int, pixel_aspect: Fraction) -> tuple[int, int]:
        """Compute width and height of the crop, in pixels; `centre` keeps a square as it is displayed."""
        if self._crop == "squash":
            return width, height
        displayed = width * pixel_aspect
        if displayed > height:
            return max(1, round(height / pixel_aspect)), height
        return width, max(1, round(displayed))


def has_alpha(pixels: VideoFormat) -> bool:
    """Whether a pixel format can hold transparent pixels."""
    return pixels.has_palette or any(component.is_alpha for component in pixels.components)


def _composite(frame: VideoFrame, colour: ColourSpace) -> tuple[VideoFrame, ColourSpace]:
    """Lay a picture on black, as video players do; an opaque one is returned unchanged, to the bit."""
    graph = _graph(frame, ("scale", f"{_SCALE}:{_input(colour)}"), ("format", "rgba64le"))
    graph.vpush(frame)
    rgba = graph.vpull().to_ndarray()
    alpha = rgba[..., 3:].astype(np.uint32)
    if alpha.min() == _OPAQUE:
        return frame, colour
    seen = (rgba[..., :3] * alpha + _OPAQUE // 2) // _OPAQUE
    return VideoFrame.from_ndarray(seen.astype(np.uint16), format="rgb48le"), ColourSpace("auto", True, colour.transfer)


def _graph(frame: VideoFrame, *filters: tuple[str, str]) -> Graph:
    """Chain filters, given by name and arguments, behind a source of pictures like this one."""
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, av.time_base)
    )
    graph.link_nodes(source, *(graph.add(*each) for each in filters), graph.add("buffersink")).configure()
    return graph


def _input(colour: ColourSpace) -> str:
    return f"in_color_matrix={colour.matrix}:in_range={'full' if colour.full_range else 'limited'}"


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


def decode_picture(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a JPEG, PNG or WebP to uint8 [H, W, 3], upright as its EXIF says, transparent parts on black.

    Raises:
        DataError: the bytes are none of these, are cut short, or hold more than `max_pixels`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise DataError(
                    f"image of {image.width}x{image.height} is larger than {max_pixels} pixels; send a smaller one",
                    field="image",
                )
            turn = _TURNS.get(_orientation(image))
            picture = _to_rgb(image)
            return np.asarray(picture if turn is None else picture.transpose(turn))
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"image of {len(data)} bytes is no JPEG, PNG or WebP", field="image") from None
    except Exception as error:  # Pillow meets broken files with many kinds
        reason = first_line(error)
        raise DataError(f"image of {len(data)} bytes cannot be decoded: {reason}", field="image") from error


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation; a picture whose EXIF cannot be read is shown as it is stored, as viewers do."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow meets broken EXIF with many kinds
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _grey_to_rgb(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "RGB" and max(image.info["transparency"]) > 255:  # of 16 bits, while Pillow keeps the upper 8
        image.info["transparency"] = tuple(value >> 8 for value in image.info["transparency"])
    rgba = image.convert("RGBA")
    black = Image.new("RGB", image.size)
    black.paste(rgba, mask=rgba.getchannel("A"))
    return black


def _grey_to_rgb(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits; the one grey that the file declares transparent becomes black."""
    values = np.asarray(image).astype(np.uint32)
    transparent = image.info.get("transparency")
    if transparent is not None:
        values[values == transparent] = 0
    return Image.fromarray(((values * 255 + 32_767) // 65_535).astype(np.uint8)).convert("RGB")
