"""A two-hour video is sampled in constant memory."""

import math
import os
from pathlib import Path

import psutil
import pytest

from prospect.vision.video import sample_frames
from tests.vision.videos import flat_picture, index_of, write_video

pytestmark = [pytest.mark.e2e, pytest.mark.long]

HOURS, RATE = 2, 5
MB = 1 << 20


@pytest.fixture(scope="module")
def two_hours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    number = HOURS * 3600 * RATE
    pictures = [flat_picture(index, 64, 64) for index in range(27)]
    return write_video(
        tmp_path_factory.mktemp("long") / "v.mp4",
        [index / RATE for index in range(number)],
        [pictures[index % 27] for index in range(number)],
        rate=RATE,
        encoder={"preset": "ultrafast", "crf": "18", "g": "50"},
    )


def test_memory_is_flat(two_hours: Path) -> None:
    """After the first minute of video nothing is added: one more hour of pictures held would be 1.06 GB."""
    process = psutil.Process(os.getpid())
    resident: list[int] = []
    total = 0
    for frame, picture in enumerate(sample_frames(two_hours, size=224, crop="squash")):
        assert index_of(picture) == (math.ceil((frame + 1) * RATE / 2) - 1) % 27
        total += 1
        if frame % 120 == 119:
            resident.append(process.memory_info().rss)
    assert total == HOURS * 3600 * 2
    print(f"resident memory after a minute {resident[0] / MB:.0f} MB, at most {max(resident) / MB:.0f} MB")
    assert max(resident) - resident[0] < 30 * MB
