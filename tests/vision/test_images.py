"""JPEG and PNG files of every kind: decoded rightly or refused in one sentence."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prospect.errors import DataError
from prospect.vision.pictures import MAX_PIXELS, PNG_SIGNATURE, decode_picture

RED, GREEN = (200, 60, 30), (20, 180, 40)
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
"""Colour types of PNG."""


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(colour_type: int, bits: int, row: bytes, width: int, height: int = 1, **chunks: bytes) -> bytes:
    """A PNG of one row, as Pillow cannot write it."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    extra = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return PNG_SIGNATURE + chunk(b"IHDR", header) + extra + pixels


def shorts(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


Entry = tuple[int, int, int, int | bytes]


def exif(entries: Sequence[Entry]) -> bytes:
    """A little-endian EXIF block; entries are (tag, type, count, value)."""
    directory, tail = struct.pack("<H", len(entries)), b""
    at = 8 + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        data = struct.pack("<L", value) if isinstance(value, int) else value
        cell = data.ljust(4, b"\0")
        if len(data) > 4:
            cell, tail = struct.pack("<L", at + len(tail)), tail + data
        directory += struct.pack("<HHL", tag, kind, count) + cell
    return b"Exif\0\0II*\0" + struct.pack("<L", 8) + directory + b"\0\0\0\0" + tail


TURNED: Entry = (0x0112, 3, 1, 6)
"""A phone held upright."""


def test_16_bit_grey_keeps_its_shades() -> None:
    ramp = np.tile(np.linspace(0, 65_535, 64).astype(np.uint16), (48, 1))
    picture = decode_picture(saved(Image.fromarray(ramp)))
    assert np.abs(picture.mean() - 127.5) < 0.1
    np.testing.assert_array_equal(picture[0, :, 0], np.rint(ramp[0] / 257).astype(np.uint8))
    dark = np.full((4, 4), 300, np.uint16)
    assert decode_picture(saved(Image.fromarray(dark))).max() == 1


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(GREY_ALPHA, 16, shorts(60_000, 65_535, 60_000, 0), 2), [(233, 233, 233), (0, 0, 0)]),
        (png(RGB_ALPHA, 16, shorts(60_000, 0, 0, 65_535, 60_000, 0, 0, 0), 2), [(233, 0, 0), (0, 0, 0)]),
        (png(RGB_ALPHA, 8, bytes([200, 60, 30, 255, 200, 60, 30, 128]), 2), [RED, (100, 30, 15)]),
        (png(GREY, 16, shorts(30_000, 65_535), 2, tRNS=shorts(65_535)), [(117, 117, 117), (0, 0, 0)]),
        (png(RGB, 16, shorts(60_000, 0, 0, 0, 60_000, 0), 2, tRNS=shorts(60_000, 0, 0)), [(0, 0, 0), (0, 233, 0)]),
        (png(RGB, 8, bytes([*RED, *GREEN]), 2, tRNS=shorts(*RED)), [(0, 0, 0), GREEN]),
        (png(PALETTE, 8, bytes([0, 1]), 2, PLTE=bytes([*RED, *GREEN]), tRNS=b"\0"), [(0, 0, 0), GREEN]),
        (png(GREY, 1, b"\x40", 2), [(0, 0, 0), (255, 255, 255)]),
        (saved(Image.new("CMYK", (2, 1), (0, 255, 255, 0)), "JPEG"), [(255, 0, 0), (255, 0, 0)]),
        (saved(Image.new("L", (2, 1), 77), "JPEG"), [(77, 77, 77), (77, 77, 77)]),
    ],
    ids=[
        "16-bit grey with alpha", "16-bit RGB with alpha", "half transparent", "16-bit transparent grey",
        "16-bit transparent colour", "transparent colour", "transparent entry of a palette", "1 bit", "CMYK", "grey",
    ],
)  # fmt: skip
def test_every_kind_is_seen_on_black(data: bytes, expected: list[tuple[int, int, int]]) -> None:
    np.testing.assert_allclose(decode_picture(data)[0].astype(int), expected, atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_all_eight_orientations(orientation: int, kind: str) -> None:
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[:24, :32], stored[24:, :32], stored[:24, 32:] = 250, 150, 80
    turns = {1: stored, 2: np.fliplr(stored), 3: np.rot90(stored, 2), 4: np.flipud(stored), 6: np.rot90(stored, -1)}
    turns |= {8: np.rot90(stored), 5: stored.swapaxes(0, 1), 7: np.rot90(stored, 2).swapaxes(0, 1)}
    tag = Image.Exif()
    tag[0x0112] = orientation
    picture = decode_picture(saved(Image.fromarray(stored), kind, exif=tag))
    assert picture.shape == turns[orientation].shape
    assert np.abs(picture.astype(int) - turns[orientation]).mean() < 3


@pytest.mark.parametrize(
    "entry",
    [(0x011A, 10, 1, struct.pack("<ll", -1, 0)), (0x010F, 3, 1, 7), (0x9286, 4, 1, 3), (0x0132, 5, 1, bytes(8))],
    ids=["rational -1/0", "a make that is a number", "a comment that is a number", "a date that is 0/0"],
)
@pytest.mark.filterwarnings("ignore")
def test_a_picture_is_turned_beside_exif_that_cannot_be_written_back(entry: Entry) -> None:
    stored = np.zeros((48, 64, 3), np.uint8)
    stored[:, :32] = 255
    picture = decode_picture(saved(Image.fromarray(stored), "JPEG", exif=exif([TURNED, entry])))
    assert picture.shape == (64, 48, 3)
    assert picture[:28].min() > 200 > 50 > picture[-28:].max()


@pytest.mark.parametrize(
    "block",
    [exif([(0x0112, 3, 1, 9)]), exif([(0x0112, 2, 2, b"6\0")]), b"Exif\0\0no TIFF at all", exif([TURNED])[:20]],
    ids=["orientation 9", "orientation in letters", "garbage", "cut short"],
)
@pytest.mark.filterwarnings("ignore")
def test_exif_that_says_nothing_leaves_the_picture_as_it_is_stored(block: bytes) -> None:
    assert decode_picture(saved(Image.new("RGB", (64, 48)), "JPEG", exif=block)).shape == (48, 64, 3)


@pytest.mark.parametrize(("width", "height"), [(8_001, 8_000), (60_000, 60_000), (2**31 - 1, 1)])
def test_too_many_pixels_are_refused_before_they_are_unpacked(width: int, height: int) -> None:
    with pytest.raises(DataError, match=r"image of .* (larger than|exceeds)") as refused:
        decode_picture(png(GREY, 8, b"nothing that could be unpacked", width, height))
    assert "\n" not in str(refused.value)
    assert width * height > MAX_PIXELS


@pytest.mark.parametrize("data", [b"", b"garbage", b"\xff\xd8\xff\xe0 cut short", PNG_SIGNATURE])
def test_garbage_instead_of_a_picture_is_one_sentence(data: bytes) -> None:
    with pytest.raises(DataError, match=f"image of {len(data)} bytes"):
        decode_picture(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_cut_short_is_one_sentence(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = saved(Image.fromarray(noise), kind)
    for share in (0.2, 0.5, 0.9):
        with pytest.raises(DataError, match=r"cannot be decoded|is no JPEG") as refused:
            decode_picture(whole[: int(len(whole) * share)])
        assert "\n" not in str(refused.value)
