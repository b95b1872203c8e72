"""The 2-fps sampler: which source picture each frame gets, whatever the source's rate."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prospect.dialogue.timeline import num_frames
from prospect.errors import DataError
from prospect.vision.pictures import Scaler, resize_picture
from prospect.vision.video import probe, sample_frames
from tests.vision.videos import index_of, write_sound, write_video


def sampled(path: Path, size: int = 32) -> list[np.ndarray]:
    return list(sample_frames(path, size=size, crop="squash"))


def expected_indices(times: list[float], frames: int) -> list[int]:
    """The rule in its own words: the last source picture with pts < (k+1)/fps."""
    return [max(i for i, time in enumerate(times) if time < (k + 1) / 2 - 1e-9 or i == 0) for k in range(frames)]


def test_a_30_fps_source_gives_the_last_picture_of_each_half_second(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [i / 30 for i in range(80)])
    assert probe(path).num_frames == 5
    assert [index_of(p) for p in sampled(path)] == [14, 29 % 27, 44 % 27, 59 % 27, 74 % 27]


def test_a_2_fps_source_passes_through_unchanged(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", [i / 2 for i in range(9)], rate=2)
    assert [index_of(p) for p in sampled(path)] == list(range(9))


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_a_variable_rate_follows_the_time_stamps(tmp_path: Path, extension: str) -> None:
    times = [0, 0.1, 0.15, 0.4, 0.5, 0.9, 1.7, 3.25, 3.4]
    pictures = sampled(write_video(tmp_path / f"v.{extension}", times))
    assert [index_of(p) for p in pictures] == expected_indices(times, len(pictures))
    assert len(pictures) == probe(tmp_path / f"v.{extension}").num_frames


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gaps=st.lists(st.integers(10, 1500), min_size=1, max_size=20), first=st.integers(0, 3000))
def test_every_frame_has_its_picture_whatever_the_times(tmp_path: Path, gaps: list[int], first: int) -> None:
    milliseconds = [sum(gaps[:i]) for i in range(len(gaps) + 1)]
    path = write_video(tmp_path / "v.mp4", [(first + m) / 1000 for m in milliseconds])
    pictures = sampled(path)
    info = probe(path)
    assert len(pictures) == info.num_frames == num_frames(info.duration_s)
    assert [index_of(p) for p in pictures] == expected_indices([m / 1000 for m in milliseconds], len(pictures))


def test_one_picture_is_one_frame(tmp_path: Path) -> None:
    assert len(sampled(write_video(tmp_path / "v.mp4", [0.0]))) == 1


@pytest.mark.parametrize(("rotation", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotation_is_applied(tmp_path: Path, rotation: int, turns: int) -> None:
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, :32], picture[:24, 32:] = 200, 100
    path = write_video(tmp_path / "v.mp4", [0, 0.5, 1.0], [picture] * 3, rate=2, rotation=rotation)
    upright = np.rot90(picture, turns)
    info = probe(path)
    assert (info.height, info.width) == upright.shape[:2]
    difference = sampled(path)[0].astype(int) - resize_picture(upright, 32, "squash").astype(int)
    assert np.abs(difference).mean() < 4


def test_real_clips_keep_every_frame(shared_data: Path) -> None:
    folder = shared_data / "clips" / "proassist_2fps"
    for video_id in json.loads((folder / "dialogues.json").read_text()):
        path = folder / f"{video_id}.mp4"
        with av.open(str(path)) as container:
            scale = Scaler(384, "squash")
            source = [scale(frame) for frame in container.decode(video=0)]
        pictures = sampled(path, 384)
        assert len(pictures) == len(source) == probe(path).num_frames
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(pictures, source, strict=True))


def test_15_fps_clips_have_two_frames_a_second(shared_data: Path) -> None:
    path = sorted((shared_data / "clips" / "captaincook4d").glob("*.mp4"))[0]
    assert len(sampled(path)) == probe(path).num_frames == 10


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.8])
def test_a_truncated_file_is_an_error(tmp_path: Path, extension: str, share: float) -> None:
    noise = [np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8) for i in range(90)]
    options = {"movflags": "faststart"} if extension == "mp4" else {}
    path = write_video(tmp_path / f"v.{extension}", [i / 30 for i in range(90)], noise, options=options)
    whole = path.read_bytes()
    assert len(sampled(path)) == 6
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=str(path)):
        sampled(path)
    with pytest.raises(DataError, match=str(path)):
        probe(path)


def test_broken_pictures_in_the_middle_are_an_error(tmp_path: Path) -> None:
    noise = [np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8) for i in range(60)]
    path = write_video(tmp_path / "v.mp4", [i / 30 for i in range(60)], noise)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(data) // 4] = bytes(len(data) // 4)
    path.write_bytes(data)
    with pytest.raises(DataError, match="corrupted"):
        sampled(path)


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    empty, text = tmp_path / "empty.mp4", tmp_path / "text.mp4"
    empty.touch()
    text.write_text("not a video")
    for path, reason in [
        (tmp_path / "missing.mp4", "does not exist"),
        (tmp_path, "does not exist"),
        (empty, "is an empty file"),
        (text, "truncated, corrupted or not a video"),
        (write_sound(tmp_path / "sound.mp4"), "has no video stream"),
    ]:
        with pytest.raises(DataError, match=reason) as error:
            sampled(path)
        assert str(path) in str(error.value)
        with pytest.raises(DataError, match=reason):
            probe(path)
