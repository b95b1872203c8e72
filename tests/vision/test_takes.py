"""Files whose clock starts again in the middle: takes follow one another without a gap."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from prospect.errors import DataError
from prospect.vision.decode import open_video
from prospect.vision.video import probe, sample_frames
from tests.vision.videos import index_of, write_video

TAKE = [i / 25 for i in range(75)]
SHOWN = [12, 24, 37 % 27, 49 % 27, 62 % 27, 74 % 27]
"""Indices of the pictures of a take's six half seconds."""
H264 = {"g": "12", "bf": "2"}


def take(path: Path, start: float = 0, encoder: dict[str, str] | None = None, **options: Any) -> bytes:
    copy = {"mpegts_copyts": "1"} if path.suffix == ".ts" else {}
    times = [start + time for time in TAKE]
    return write_video(path, times, rate=25, encoder=encoder or H264, options=copy, **options).read_bytes()


def sampled(path: Path) -> list[int]:
    pictures = [index_of(picture) for picture in sample_frames(path, size=32, crop="squash")]
    assert len(pictures) == probe(path).num_frames
    return pictures


def takes_in(path: Path) -> int:
    with open_video(str(path)) as video:
        assert list(video.packets())
        return video.takes


@pytest.mark.parametrize("takes", [1, 2, 3])
@pytest.mark.parametrize("extension", ["ts", "m2ts"])
def test_takes_that_were_joined_follow_one_another(tmp_path: Path, extension: str, takes: int) -> None:
    path = tmp_path / f"v.{extension}"
    path.write_bytes(take(path) * takes)
    assert takes_in(path) == takes
    assert sampled(path) == SHOWN * takes
    assert probe(path).duration_s == pytest.approx(3 * takes)


def test_a_program_stream_of_two_takes_keeps_the_second_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "v.mpg"
    one = take(path, encoder={"g": "12"}, codec="mpeg2video", time_base=Fraction(1, 25))
    length, alone = probe(path).duration_s, sampled(path)
    path.write_bytes(one * 2)
    assert probe(path).duration_s == pytest.approx(2 * length)
    assert probe(path).num_frames == 12
    assert sampled(path)[:6] == alone
    second = [max(i for i, time in enumerate(TAKE) if length + time < (k + 1) / 2) for k in range(6, 12)]
    assert sampled(path)[6:] == pytest.approx([i % 27 for i in second], abs=1)


@pytest.mark.parametrize("starts", [(1000, 0), (0, 1000), (500, 3)])
def test_the_clock_of_a_take_may_stand_anywhere(tmp_path: Path, starts: tuple[int, int]) -> None:
    """FFmpeg takes a large step back for a clock that ran over: it comes as a step ahead."""
    path = tmp_path / "v.ts"
    path.write_bytes(b"".join([take(tmp_path / "take.ts", start) for start in starts]))
    assert sampled(path) == SHOWN * 2


def test_a_take_that_begins_within_a_group_begins_with_its_first_keyframe(tmp_path: Path) -> None:
    path = tmp_path / "v.ts"
    one = take(path, encoder={"g": "25", "bf": "0", "x264-params": "scenecut=0"})
    with open_video(str(path)) as video:
        third = [packet.pos for packet in video.packets()][5]
    assert third is not None
    path.write_bytes(one + one[third // 188 * 188 :])
    pictures = sampled(path)
    assert pictures[:6] == SHOWN
    assert pictures[6:] == [(25 + i) % 27 for i in (12, 24, 37, 49)]


@pytest.mark.parametrize("name", ["v.mkv", "v.webm"])
@pytest.mark.parametrize("takes", [2, 3])
def test_matroska_files_that_were_joined_as_bytes_are_refused(tmp_path: Path, name: str, takes: int) -> None:
    codec, encoder = ("libvpx", {"deadline": "realtime"}) if name.endswith("webm") else ("libx264", H264)
    path = tmp_path / name
    path.write_bytes(take(path, codec=codec, encoder=encoder) * takes)
    for read in (sampled, probe):
        with pytest.raises(DataError, match=f"{path} is several Matroska files in one"):
            read(path)


def test_a_gap_of_seconds_is_no_other_take(tmp_path: Path) -> None:
    times = [0, 0.1, 0.2, 7, 7.5]
    path = write_video(tmp_path / "v.ts", times, rate=10, encoder={"g": "1"})
    assert takes_in(path) == 1
    assert sampled(path) == [2] * 14 + [3]
