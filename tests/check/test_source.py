"""A check says what is wrong with a source before anything is computed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prospect.check.job import check
from prospect.check.source import MOST_CUT, check_source
from prospect.cli import load_config
from prospect.errors import DataError
from tests.conftest import REPOSITORY
from tests.vision.videos import write_video

RECORDS = {
    "tea_1": {
        "dataset": "home",
        "goal": "Make tea",
        "weather": "sunny",
        "steps": [{"start": 1.0, "end": 3.0, "text": "Boil water"}, {"start": 3.0, "end": 90.0, "text": "Add the bag"}],
        "turns": [{"time": 3.0, "role": "assistant", "text": "The water boils. Add the bag."}],
    },
    "tea_2": {
        "dataset": "home",
        "goal": "Make tea",
        "turns": [{"time": 1, "role": "assistant", "text": "Boil water."}],
    },
    "broken": {"dataset": "home", "goal": "Make tea", "turns": [{"time": 1, "role": "assistant", "text": "Pour it."}]},
    "gone": {"dataset": "home", "goal": "Make tea", "turns": [{"time": 1, "role": "assistant", "text": "Drink it."}]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four records: a step that ends past its video, a misspelled file, one that is no video, and one without."""
    (tmp_path / "dialogues.json").write_text(json.dumps(RECORDS))
    times = [index / 10 for index in range(100)]
    write_video(tmp_path / "tea_1.mp4", times, rate=10)
    write_video(tmp_path / "tea_02.mp4", times, rate=10)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    return tmp_path


def checked(folder: Path, *overrides: str) -> list[str]:
    return [f"storage.root={folder}", "data=clips", f"data.path={folder}", "data.holdout=0", *overrides]


def test_everything_that_training_would_stumble_over_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(load_config("check", checked(folder)))
    said = capsys.readouterr().out
    for part in (
        "weather",  # a field that nobody reads
        "'tea_2'", "tea_02.mp4",  # the nearest name
        "no file for 'gone'",
        "broken.mp4 is truncated, corrupted or not a video",
        "videos with a file: 2; without: 2",
        "S2->complete: time 90 s lies beyond the video's end at 10 s",
        "4 clips to train on",
        "docs/data.md",
    ):  # fmt: skip
        assert part in said, f"{part!r} is missing in:\n{said}"


def test_a_source_without_a_usable_dialogue_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "dialogues.json").write_text("{}")
    with pytest.raises(DataError, match=r"`data.path` \(.*\) has no usable dialogue"):
        check_source(load_config("check", checked(tmp_path)))


def test_nothing_to_train_on_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(load_config("check", checked(folder, "data.holdout=4")))
    assert "no dialogue is in the split `train`" in capsys.readouterr().out


def test_of_many_dialogues_some_are_cut_and_the_others_count_as_these(tmp_path: Path) -> None:
    records = {f"v{number}": RECORDS["tea_2"] | {"goal": f"Make tea {number}"} for number in range(MOST_CUT + 50)}
    (tmp_path / "dialogues.json").write_text(json.dumps(records))
    clips = check_source(load_config("check", checked(tmp_path, "training.clips.random_start_share=0"))).clips
    assert (clips.dialogues, clips.cut, clips.total) == (MOST_CUT + 50, (MOST_CUT + 50) // 2, MOST_CUT + 50)


def test_it_needs_neither_torch_nor_ray(folder: Path) -> None:
    script = (
        "import sys; from prospect.cli import load_config; from prospect.check.job import check;"
        f"check(load_config('check', {checked(folder)}));"
        "print(*{'torch', 'ray', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
