"""Matroska files whose last picture stays longer than its packet says, and those that are cut short."""

import io
import struct
from pathlib import Path

import pytest

from prospect.errors import DataError
from prospect.vision import matroska
from prospect.vision.video import probe, sample_frames
from tests.vision.videos import index_of, panorama, write_video

SEGMENT = b"\x18\x53\x80\x67"
CLUSTER = b"\x1f\x43\xb6\x75"
DURATION = b"\x44\x89\x88"


def recording(path: Path, declared_s: float, *, sizes: bool = True) -> Path:
    """A recording of 3 s whose header declares another length; without sizes it is one that a browser writes."""
    codec, encoder = ("libvpx", {"deadline": "realtime"}) if path.suffix == ".webm" else ("libx264", {"bf": "0"})
    write_video(path, [i / 10 for i in range(30)], rate=10, codec=codec, encoder=encoder)
    data = bytearray(path.read_bytes())
    at = data.index(DURATION) + len(DURATION)
    data[at : at + 8] = struct.pack(">d", declared_s * 1000)
    if not sizes:
        for name in (SEGMENT, CLUSTER):
            at = data.index(name) + len(name)
            length = 9 - data[at].bit_length()
            data[at : at + length] = ((1 << 7 * length) - 1 | 1 << 7 * length).to_bytes(length, "big")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["v.webm", "v.mkv"])
@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize("declared_s", [8.0, 4.5])
def test_the_last_picture_stays_until_the_declared_end(
    tmp_path: Path, name: str, sizes: bool, declared_s: float
) -> None:
    path = recording(tmp_path / name, declared_s, sizes=sizes)
    pictures = [index_of(picture) for picture in sample_frames(path, size=32, crop="squash")]
    assert len(pictures) == probe(path).num_frames == declared_s * 2
    assert pictures[:6] == [4, 9, 14, 19, 24, 2]
    assert set(pictures[5:]) == {2}


@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_recording_that_was_cut_short_is_refused(tmp_path: Path, sizes: bool, share: float) -> None:
    path = recording(tmp_path / "v.mkv", 8.0, sizes=sizes)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share) + 1])
    with pytest.raises(DataError, match=f"{path} (is truncated|holds no picture)"):
        probe(path)


def test_a_length_of_days_is_taken_for_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"truncated: 3\.0 s of 864000\.0 s"):
        probe(recording(tmp_path / "v.webm", 864_000))


@pytest.mark.parametrize("extension", ["mkv", "webm"])
def test_a_whole_file_is_told_from_one_that_lacks_its_end(tmp_path: Path, extension: str) -> None:
    codec = "libvpx" if extension == "webm" else "libx264"
    path = write_video(tmp_path / f"v.{extension}", [i / 30 for i in range(60)], panorama(60), codec=codec, encoder={})
    data = path.read_bytes()
    assert matroska.is_whole(io.BytesIO(data), len(data))
    for length in (0, 3, 40, len(data) // 2, len(data) - 1):
        assert not matroska.is_whole(io.BytesIO(data[:length]), length)
