"""From any picture to the encoder's square: the one resize that recorded video and live sessions share."""

import io
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from prospect.errors import DataError

Crop = Literal["squash", "centre"]
"""`squash` ignores the aspect ratio, as SigLIP was trained; `centre` keeps the largest central square."""

RESIZE_KERNEL = "pil-bicubic-antialias"
"""Part of the fingerprint. Pillow's kernel is what open_clip and timm train with, and its result is the same
on every machine."""

MAX_PIXELS = 64_000_000
"""A picture sent live that unpacks to more than this is refused before it is unpacked."""


def resize_picture(picture: np.ndarray, size: int, crop: Crop) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [size, size, 3]; a picture of that size already comes back unchanged."""
    if crop == "centre":
        height, width = picture.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        picture = picture[top : top + side, left : left + side]
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


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
