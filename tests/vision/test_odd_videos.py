"""Files that are unusual or broken: each is sampled rightly or refused in one sentence."""

import os
from fractions import Fraction
from pathlib import Path

import fsspec
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorTrc

from prospect.errors import DataError
from prospect.vision.colour import WHITE_NITS, _nits_to_pq
from prospect.vision.pictures import resize_picture
from prospect.vision.video import probe, sample_frames
from tests.needs import needs
from tests.vision.videos import QUIET_HEVC, flat_picture, index_of, panorama, turn_mp4, write_transparent, write_video


def sampled(path: Path | str, size: int = 32) -> list[np.ndarray]:
    pictures = list(sample_frames(path, size=size, crop="squash"))
    assert len(pictures) == probe(path).num_frames
    return pictures


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours.astype(int) - theirs).mean())


def test_1_fps_shows_every_picture_twice(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", range(4), rate=1)
    assert [index_of(p) for p in sampled(path)] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_120_fps(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [i / 120 for i in range(240)], rate=120)
    assert [index_of(p) for p in sampled(path)] == [i % 27 for i in (59, 119, 179, 239)]


def test_odd_sizes(tmp_path: Path) -> None:
    picture = panorama(1, 31, 17)[0]
    path = write_video(tmp_path / "v.mkv", [0, 0.5], [picture] * 2, rate=2, codec="ffv1", encoder={}, pixels="yuv444p")
    assert (probe(path).width, probe(path).height) == (31, 17)
    assert difference(sampled(path)[0], resize_picture(picture, 32, "squash")) < 2
    half_chroma = write_video(tmp_path / "w.mkv", [0], [picture], codec="ffv1", encoder={})
    for crop in ("squash", "centre"):
        assert next(sample_frames(half_chroma, size=32, crop=crop)).shape == (32, 32, 3)


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
@pytest.mark.parametrize("sound_s", [1, 9])
def test_sound_may_be_shorter_or_longer(tmp_path: Path, extension: str, sound_s: float) -> None:
    path = write_video(tmp_path / f"v.{extension}", [i / 10 for i in range(40)], rate=10, sound_s=sound_s)
    assert len(sampled(path)) == 8


@pytest.mark.parametrize("sound_s", [0, 3])
def test_an_mkv_that_was_cut_short_is_an_error_with_and_without_sound(tmp_path: Path, sound_s: float) -> None:
    path = write_video(tmp_path / "v.mkv", [i / 30 for i in range(90)], panorama(90), sound_s=sound_s)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{path} is truncated"):
        sampled(path)


def test_an_mp4_that_was_never_finished_is_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [i / 30 for i in range(90)], panorama(90))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"moov") - 4])
    with pytest.raises(DataError, match=f"{path} is truncated, corrupted or not a video"):
        sampled(path)


def test_interlaced_pictures_are_taken_as_they_are(tmp_path: Path) -> None:
    encoder = {"crf": "10", "x264-params": "interlaced=1"}
    path = write_video(tmp_path / "v.mp4", [i / 25 for i in range(50)], rate=25, encoder=encoder)
    assert [index_of(p) for p in sampled(path)] == [12, 24, 10, 22]


@pytest.mark.parametrize(
    ("matrix", "turned"),
    [
        ((1, 0, 0, 1), lambda p: p),
        ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
        ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
        ((0, -1, 1, 0), lambda p: np.rot90(p, 1)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda p: np.rot90(p, 2).swapaxes(0, 1)),
    ],
)
def test_all_eight_display_matrices(tmp_path: Path, matrix: tuple[int, int, int, int], turned) -> None:  # type: ignore[no-untyped-def]
    picture = panorama(1)[0]
    path = turn_mp4(write_video(tmp_path / "v.mp4", [0], [picture]), matrix)
    upright = turned(picture)
    assert (probe(path).height, probe(path).width) == upright.shape[:2]
    assert difference(sampled(path)[0], resize_picture(np.ascontiguousarray(upright), 32, "squash")) < 4


@pytest.mark.parametrize(("codec", "encoder"), [("libx264", {"crf": "10"}), ("libx265", QUIET_HEVC)])
def test_10_bit_sdr(tmp_path: Path, codec: str, encoder: dict[str, str]) -> None:
    picture = panorama(1)[0]
    path = write_video(tmp_path / "v.mkv", [0], [picture], codec=codec, encoder=encoder, pixels="yuv420p10le")
    assert difference(sampled(path)[0], resize_picture(picture, 32, "squash")) < 4


def hdr(picture: np.ndarray, transfer: ColorTrc) -> np.ndarray:
    """An SDR picture as HDR shows it, uint16: the same light, white at 203 nits, bt2020."""
    to_bt2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
    nits = WHITE_NITS * (picture / 255) ** 2.4 @ to_bt2020.T
    if transfer == ColorTrc.SMPTE2084:
        return np.rint(_nits_to_pq(nits) * 65535).astype(np.uint16)
    share = nits / 1000
    scene = share * (share @ [0.2627, 0.6780, 0.0593] + 1e-9)[..., None] ** (1 / 1.2 - 1)
    code = np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    )
    return np.rint(code * 65535).astype(np.uint16)


@pytest.mark.parametrize("transfer", [ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67])
def test_hdr_looks_like_the_sdr_original(tmp_path: Path, transfer: ColorTrc) -> None:
    picture = panorama(1)[0]
    path = write_video(
        tmp_path / "v.mp4",
        [0],
        [hdr(picture, transfer)],
        pixels="yuv420p10le",
        color_trc=transfer,
        color_primaries=ColorPrimaries.BT2020,
        colorspace=9,
        color_range=1,
    )
    ours, original = sampled(path)[0], resize_picture(picture, 32, "squash")
    assert abs(float(ours.mean()) - float(original.mean())) < 8
    assert difference(ours, original) < 8
    assert np.corrcoef(ours.ravel(), original.ravel())[0, 1] > 0.99


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("v.mov", "qtrle", "argb"),
        ("v.mov", "prores_ks", "yuva444p10le"),
        ("v.mkv", "ffv1", "yuva420p"),
        ("v.webm", "libvpx-vp9", "yuva420p"),
        ("w.webm", "libvpx", "yuva420p"),
    ],
)
def test_transparent_parts_are_black_whatever_colour_they_hide(
    tmp_path: Path, name: str, codec: str, pixels: str
) -> None:
    picture = np.zeros((48, 64, 4), np.uint8)
    picture[..., 0], picture[:, 16:32, 3], picture[:, 32:, 3] = 250, 128, 255
    path = write_transparent(tmp_path / name, picture, codec, pixels)
    row = sampled(path, 64)[0][32].astype(int)
    np.testing.assert_allclose(row[[4, 24, 50]], [(0, 0, 0), (125, 0, 0), (250, 0, 0)], atol=6)


@pytest.mark.parametrize(("pixels", "plain"), [("bgra", "bgr0"), ("yuva420p", "yuv420p")])
def test_an_opaque_picture_with_alpha_is_the_one_without(tmp_path: Path, pixels: str, plain: str) -> None:
    picture = np.dstack([panorama(1)[0], np.full((48, 64), 255, np.uint8)])
    with_alpha = write_transparent(tmp_path / "v.mkv", picture, "ffv1", pixels)
    without = write_transparent(tmp_path / "w.mkv", picture, "ffv1", plain)
    assert difference(sampled(with_alpha)[0], sampled(without)[0]) < 1


@pytest.mark.parametrize("pixels", ["gray16le", "gray10le", "gray"])
def test_grey_videos_keep_their_shades(tmp_path: Path, pixels: str) -> None:
    ramp = np.repeat(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))[..., None], 3, axis=2)
    path = write_video(tmp_path / "v.mkv", [0], [ramp], codec="ffv1", encoder={}, pixels=pixels)
    assert np.abs(sampled(path, 64)[0][32, :, 0].astype(int) - ramp[0, :, 0]).max() <= 2


@pytest.mark.parametrize(("colorspace", "height"), [(1, 48), (5, 48), (2, 48), (2, 720)])
def test_colours_follow_the_stream_s_matrix(tmp_path: Path, colorspace: int, height: int) -> None:
    """A matrix that is not named is bt601, for large pictures bt709."""
    picture = np.full((height, 64, 3), (180, 40, 60), np.uint8)
    written = {2: 1 if height == 720 else 5}.get(colorspace, colorspace)
    path = write_video(tmp_path / "v.mp4", [0], [picture], colorspace=written)
    if colorspace == 2:
        path = write_video(tmp_path / "v.mkv", [0], [picture], codec="ffv1", encoder={}, colorspace=written)
    assert np.abs(sampled(path)[0].mean((0, 1)) - (180, 40, 60)).max() < 4


def test_centre_squares_the_picture_as_it_is_displayed(tmp_path: Path) -> None:
    picture = flat_picture(0)
    picture[:, 8:56] = 220
    path = write_video(tmp_path / "v.mp4", [0], [picture], sample_aspect_ratio=Fraction(4, 3))
    square = next(sample_frames(path, size=36, crop="centre"))
    assert square.min() > 200, "36 of 64 columns, each 4/3 as wide as high"


def test_a_url_is_read_through_its_file_system(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [i / 30 for i in range(90)])
    fsspec.filesystem("memory").pipe("/videos/v.mp4", path.read_bytes())
    for url in ("memory://videos/v.mp4", f"file://{path}"):
        assert np.array_equal(sampled(url), sampled(path))
    with pytest.raises(DataError, match=r"memory://videos/w\.mp4 does not exist"):
        probe("memory://videos/w.mp4")


def test_a_name_that_looks_like_a_protocol_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "concat:a|b.mp4", [0, 0.5], rate=2)
    monkeypatch.chdir(tmp_path)
    assert len(sampled("concat:a|b.mp4")) == 2


@needs("user", os.geteuid() != 0)
def test_a_file_that_may_not_be_read_is_one_sentence(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [0])
    path.chmod(0)
    with pytest.raises(DataError, match=f"video {path} cannot be read: Permission denied"):
        probe(path)
