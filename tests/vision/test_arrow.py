"""ProAssist's frames files are videos that were sampled already."""

from pathlib import Path

import numpy as np
import pytest

from prospect.errors import DataError
from prospect.vision.settings import Crop
from prospect.vision.video import probe, sample_frames
from tests.vision.videos import flat_picture, index_of, write_frames_file


def sampled(path: Path, crop: Crop = "centre") -> list[np.ndarray]:
    return list(sample_frames(path, size=32, crop=crop))


@pytest.mark.parametrize("stream", [True, False])
def test_every_row_is_a_frame(tmp_path: Path, stream: bool) -> None:
    path = write_frames_file(tmp_path / "v.arrow", [flat_picture(i) for i in range(11)], stream=stream)
    assert [index_of(p) for p in sampled(path)] == list(range(11))
    info = probe(path)
    assert (info.num_frames, info.duration_s, info.width, info.height) == (11, 5.5, 64, 48)


@pytest.mark.parametrize("row", ["no base64!", "AAAA", "", None])
def test_a_bad_row_is_named(tmp_path: Path, row: str | None) -> None:
    path = write_frames_file(tmp_path / "v.arrow", [*(flat_picture(i) for i in range(6)), row])
    pictures = sample_frames(path, size=32, crop="squash")
    assert [index_of(next(pictures)) for _ in range(6)] == list(range(6))
    with pytest.raises(DataError, match=f"row 6 of frames file {path} is not a picture"):
        next(pictures)


def test_what_is_no_frames_file_is_one_sentence(tmp_path: Path) -> None:
    whole = write_frames_file(tmp_path / "whole.arrow", [flat_picture(i) for i in range(6)]).read_bytes()
    cut, text, empty = tmp_path / "cut.arrow", tmp_path / "text.arrow", tmp_path / "empty.arrow"
    cut.write_bytes(whole[: len(whole) // 2])
    text.write_text("no arrow file at all")
    empty.touch()
    for path, reason in [
        (tmp_path / "missing.arrow", "does not exist"),
        (cut, "truncated"),
        (text, "not an Arrow file"),
        (empty, "not an Arrow file"),
        (write_frames_file(tmp_path / "none.arrow", []), "holds no picture"),
    ]:
        for read in (sampled, probe):
            with pytest.raises(DataError, match=reason) as error:
                read(path)
            assert str(path) in str(error.value)
            assert "\n" not in str(error.value)


def test_another_rate_is_refused(tmp_path: Path) -> None:
    path = write_frames_file(tmp_path / "v.arrow", [flat_picture(0)])
    with pytest.raises(DataError, match="was sampled at 2 frames/s and cannot be read at 4"):
        probe(path, fps=4)
