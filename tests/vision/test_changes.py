"""Which videos a later decoder reads otherwise: those are embedded again, and no others."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prospect.vision.changes import decodes_otherwise
from prospect.vision.settings import DECODER_VERSION
from tests.vision.test_streams import MAIN, PREVIEW, write_streams
from tests.vision.test_takes import take
from tests.vision.videos import flat_picture, write_frames_file, write_transparent, write_video


def png_row() -> str:
    file = io.BytesIO()
    Image.fromarray(flat_picture(0)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def joined(path: Path) -> Path:
    path.write_bytes(take(path) * 2)
    return path


ALIKE: dict[str, Callable[[Path], Path]] = {
    "mp4": lambda folder: write_video(folder / "v.mp4", [0, 0.5], rate=2),
    "mkv": lambda folder: write_video(folder / "v.mkv", [0, 0.5], rate=2),
    "one take": lambda folder: write_video(folder / "v.ts", [i / 10 for i in range(30)], rate=10),
    "main stream first": lambda folder: write_streams(folder / "v.mkv", [MAIN, PREVIEW]),
    "JPEG rows": lambda folder: write_frames_file(folder / "v.arrow", [flat_picture(0)]),
}
OTHERWISE: dict[str, Callable[[Path], Path]] = {
    "preview first": lambda folder: write_streams(folder / "v.mkv", [PREVIEW, MAIN]),
    "two takes": lambda folder: joined(folder / "v.ts"),
    "transparent": lambda folder: write_transparent(
        folder / "v.webm", np.zeros((48, 64, 4), np.uint8), "libvpx-vp9", "yuva420p"
    ),
    "PNG rows": lambda folder: write_frames_file(folder / "v.arrow", [flat_picture(0), png_row()]),
    "missing": lambda folder: folder / "v.mp4",
}


@pytest.mark.parametrize("kind", ALIKE)
def test_other_videos_stay(tmp_path: Path, kind: str) -> None:
    assert not decodes_otherwise(str(ALIKE[kind](tmp_path)), 1)


@pytest.mark.parametrize("kind", OTHERWISE)
def test_videos_of_a_changed_kind_are_found(tmp_path: Path, kind: str) -> None:
    assert decodes_otherwise(str(OTHERWISE[kind](tmp_path)), 1)


def test_the_same_decoder_reads_every_video_alike(tmp_path: Path) -> None:
    assert not decodes_otherwise(str(tmp_path / "not read"), DECODER_VERSION)
