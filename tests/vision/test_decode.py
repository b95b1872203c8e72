"""Skipping what is not sampled changes no bit, however the video was coded."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from av.packet import Packet
from av.video.frame import VideoFrame
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from prospect.dialogue.timeline import frame_at
from prospect.errors import DataError
from prospect.vision import decode
from prospect.vision.decode import VideoReader, open_video
from prospect.vision.video import sample_frames
from tests.vision.videos import QUIET_HEVC, panorama, write_video

Sampled = dict[int, tuple[int, bytes]]
"""Interval -> time stamp and planes of its picture."""


def planes(frame: VideoFrame) -> tuple[int, bytes]:
    assert frame.pts is not None
    return frame.pts, frame.to_ndarray().tobytes()


def decoding_everything(path: Path) -> Sampled:
    """By PyAV alone: each picture takes the place of the one before it in the same half second."""
    sampled: Sampled = {}
    with av.open(str(path)) as container:
        first: float | None = None
        for frame in container.decode(video=0):
            first = frame.time if first is None else first
            sampled[frame_at(frame.time - first)] = planes(frame)
    return sampled


def skipping(path: Path) -> Sampled:
    with open_video(str(path)) as video:
        return {interval: planes(frame) for interval, frame in video.pictures(2)}


SHORTEST_TRANSPORT_STREAM = 10 * 188
"""Bytes: FFmpeg finds out the size of the packets from more than ten of them, and opens nothing shorter."""

CODINGS = {
    "all intra": {"g": "1"},
    "long group, no B": {"g": "250", "bf": "0"},
    "B-frames": {"g": "12", "bf": "3"},
    "B-pyramid": {"g": "30", "bf": "5", "x264-params": "b-pyramid=normal:ref=4"},
    "open groups": {"g": "8", "bf": "3", "x264-params": "open-gop=1:scenecut=0"},
    "gradual refresh": {"g": "10", "x264-params": "intra-refresh=1"},
    "interlaced": {"g": "12", "bf": "2", "x264-params": "interlaced=1"},
}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    coding=st.sampled_from(sorted(CODINGS)),
    extension=st.sampled_from(["mp4", "mkv", "ts"]),
    gaps=st.lists(st.sampled_from([8, 16, 33, 33, 33, 100, 700]), min_size=1, max_size=60),
    first=st.integers(0, 2000),
)
def test_h264_is_exact(tmp_path: Path, coding: str, extension: str, gaps: list[int], first: int) -> None:
    times = [(first + sum(gaps[:i])) / 1000 for i in range(len(gaps) + 1)]
    encoder = {"preset": "veryfast", **CODINGS[coding]}
    path = write_video(tmp_path / f"v.{extension}", times, panorama(len(times)), encoder=encoder)
    assume(extension != "ts" or path.stat().st_size > SHORTEST_TRANSPORT_STREAM)
    assert skipping(path) == decoding_everything(path)


@pytest.mark.parametrize(
    ("codec", "encoder"),
    [
        ("libx265", QUIET_HEVC | {"x265-params": "log-level=none:open-gop=1:bframes=3:keyint=12"}),
        ("libx265", QUIET_HEVC | {"x265-params": "log-level=none:temporal-layers=3:bframes=4:keyint=30"}),
        ("mpeg4", {"g": "12", "bf": "2"}),
        ("libvpx-vp9", {"g": "10", "deadline": "realtime"}),
        ("ffv1", {"g": "5"}),
    ],
)
def test_other_codecs_are_exact(tmp_path: Path, codec: str, encoder: dict[str, str]) -> None:
    path = write_video(tmp_path / "v.mkv", [i / 30 for i in range(80)], panorama(80), codec=codec, encoder=encoder)
    assert skipping(path) == decoding_everything(path)


def test_a_short_group_s_tail_and_non_reference_pictures_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_to: list[str] = []
    choose = decode._sampled

    def noting(reader: VideoReader, fps: float, planned: list[int]) -> Iterator[Packet]:
        for packet in choose(reader, fps, planned):
            given_to.append(reader.codec.skip_frame)
            yield packet

    monkeypatch.setattr(decode, "_sampled", noting)
    times, encoder = [i / 60 for i in range(240)], {"g": "6", "bf": "2", "x264-params": "scenecut=0"}
    assert len(skipping(write_video(tmp_path / "v.mp4", times, panorama(240), encoder=encoder))) == 8
    assert len(given_to) < 70, "of 240 packets"
    assert given_to.count("DEFAULT") == 8


def test_a_sampled_picture_that_the_decoder_loses_is_replaced_as_if_everything_were_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keyframe taken for clean that is none makes the decoder skip: the sampler starts again, without skipping."""
    path = write_video(tmp_path / "v.mp4", [i / 30 for i in range(120)], panorama(120), encoder={"g": "250"})
    expected = list(sample_frames(path, size=32, crop="squash"))
    plan = decode._planned

    def wrong(reader: VideoReader, fps: float) -> Iterator[tuple[Packet, bool, bool]]:
        for number, (packet, wanted, opens) in enumerate(plan(reader, fps)):
            yield packet, (wanted and number < 60) or number == 70, opens

    monkeypatch.setattr(decode, "_planned", wrong)
    assert all(map(np.array_equal, expected, sample_frames(path, size=32, crop="squash")))
    with open_video(str(path)) as video, pytest.raises(decode.LostPictureError):
        list(video.pictures(2))


def test_pictures_without_time_stamps_are_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.h264", [i / 30 for i in range(30)], encoder={"bf": "2"})
    with pytest.raises(DataError, match=f"{path} has pictures without time stamps; remux"):
        list(sample_frames(path, size=32, crop="squash"))
