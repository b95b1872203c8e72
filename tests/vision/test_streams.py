"""Files with several video streams: the one that a player shows is embedded."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from prospect.errors import DataError
from prospect.vision.video import probe, sample_frames
from tests.vision.videos import flat_picture, index_of


@dataclass(frozen=True)
class Stream:
    width: int
    first: int
    """Index of its first picture."""
    pictures: int = 20
    rate: int = 10
    codec: str = "libx264"
    disposition: int = 0


PREVIEW = Stream(32, 20, pictures=2, rate=1, codec="mjpeg")
MAIN = Stream(128, 0)
DEFAULT = Disposition.default.value
COVER = Disposition.attached_pic.value


def write_streams(path: Path, streams: Sequence[Stream]) -> Path:
    with av.open(str(path), "w") as container:
        added = []
        for each in streams:
            stream = container.add_stream(
                each.codec, rate=each.rate, options={"bf": "0"} if "264" in each.codec else {}
            )
            stream.width, stream.height = each.width, each.width * 3 // 4
            stream.pix_fmt = "yuvj420p" if each.codec == "mjpeg" else "yuv420p"
            stream.disposition = each.disposition
            added.append(stream)
        for each, stream in zip(streams, added, strict=True):
            for number in range(each.pictures):
                picture = np.ascontiguousarray(flat_picture(each.first + number, each.width, each.width * 3 // 4))
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = number, Fraction(1, each.rate)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    "streams",
    [
        [PREVIEW, Stream(128, 0, disposition=DEFAULT)],
        [PREVIEW, PREVIEW, MAIN],
        [Stream(64, 20, rate=2, pictures=4), Stream(128, 0, disposition=DEFAULT), Stream(64, 20, rate=2, pictures=4)],
        [Stream(128, 0, disposition=DEFAULT), Stream(256, 15, disposition=Disposition.visual_impaired.value)],
    ],
    ids=["preview first", "two previews first", "between two others", "for the visually impaired"],
)
def test_the_picture_that_a_player_shows_is_sampled(tmp_path: Path, streams: list[Stream]) -> None:
    path = write_streams(tmp_path / "v.mkv", streams)
    info = probe(path)
    assert (info.width, info.height, info.num_frames) == (128, 96, 4)
    assert [index_of(picture) for picture in sample_frames(path, size=32, crop="squash")] == [4, 9, 14, 19]


def test_a_cover_is_not_a_video(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "song.mp4", [Stream(64, 3, disposition=COVER, pictures=1, codec="mjpeg")])
    with pytest.raises(DataError, match=r"song\.mp4 has no video stream"):
        probe(path)


def test_a_video_with_a_cover_before_it_is_sampled(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "v.mp4", [Stream(64, 10, disposition=COVER, pictures=1, codec="mjpeg"), MAIN])
    assert [index_of(picture) for picture in sample_frames(path, size=32, crop="squash")] == [4, 9, 14, 19]
