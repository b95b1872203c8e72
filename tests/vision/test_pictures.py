"""One resize for recorded and live pictures: its kernel, its crops, and what it refuses."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from prospect.errors import DataError
from prospect.vision.pictures import Scaler, resize_picture
from prospect.vision.settings import Crop


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def by_pillow(picture: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours.astype(int) - theirs).mean())


@pytest.fixture(scope="module")
def real(shared_data: Path) -> Iterator[VideoFrame]:
    with av.open(str(shared_data / "clips" / "captaincook4d" / "order_error_0_normal.mp4")) as container:
        yield next(container.decode(video=0))


@pytest.mark.parametrize("size", [384, 224, 64])
def test_the_kernel_is_pillow_s_on_real_pictures(real: VideoFrame, size: int) -> None:
    picture = real.to_ndarray(format="rgb24")
    assert difference(resize_picture(picture, size, "squash"), by_pillow(picture, size)) < 0.3


@pytest.mark.parametrize("size", [384, 64])
def test_the_decoder_s_planes_and_their_rgb_copy_resize_alike(real: VideoFrame, size: int) -> None:
    copy = Scaler(max(real.width, real.height), "squash")(real)
    assert difference(Scaler(size, "squash")(real), resize_picture(copy, size, "squash")) < 1


def test_shrinking_is_antialiased() -> None:
    shrunk = resize_picture(noise(640, 640), 16, "squash")
    assert np.abs(shrunk.astype(int) - 127).max() < 20, "each pixel is the mean of about 1600"


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 100), st.sampled_from(["squash", "centre"]))
def test_every_size_becomes_the_square_and_twice_the_same(height: int, width: int, size: int, crop: Crop) -> None:
    picture = noise(height, width)
    ours = resize_picture(picture, size, crop)
    assert (ours.shape, ours.dtype) == ((size, size, 3), np.uint8)
    again = Scaler(size, crop)(VideoFrame.from_ndarray(picture, format="rgb24"))
    np.testing.assert_array_equal(ours, again)


def test_a_picture_of_the_right_size_is_unchanged() -> None:
    np.testing.assert_array_equal(resize_picture(noise(64, 64), 64, "centre"), noise(64, 64))


def test_centre_drops_the_sides_and_squash_keeps_them() -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, :20] = 255
    assert resize_picture(picture, 20, "centre").max() == 0
    assert resize_picture(picture, 20, "squash")[:, :5].min() > 200


@pytest.mark.parametrize(("pixel_aspect", "kept"), [(Fraction(1), 40), (Fraction(1, 2), 80), (Fraction(2), 20)])
def test_centre_takes_a_square_as_it_is_displayed(pixel_aspect: Fraction, kept: int) -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 40 - kept // 2 : 40 + kept // 2] = 255
    square = Scaler(40, "centre")(VideoFrame.from_ndarray(picture, format="rgb24"), pixel_aspect)
    assert square.min() > 240
    wider = Scaler(40, "centre")(VideoFrame.from_ndarray(picture, format="rgb24"), pixel_aspect * Fraction(3, 4))
    assert kept == 80 or wider[:, 0].max() < 10


def test_sides_that_differ_too_much_are_one_sentence() -> None:
    with pytest.raises(DataError, match=r"picture of 20000x3 \(rgb24\) cannot be resized to 384x384"):
        resize_picture(np.zeros((3, 20_000, 3), np.uint8), 384, "squash")
