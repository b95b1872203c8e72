"""Statistics of the labels: what is counted, and the files that show it."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from prospect.dialogue.schema import Dialogue
from prospect.reports.statistics import MEASURES, measure, plot_statistics
from tests.factories import tea_dialogue


def dialogues() -> list[Dialogue]:
    """Two data sets; the first has two splits, and two dialogues about one video."""
    tea = tea_dialogue()
    sure = tuple(step.model_copy(update={"confidence": 0.5}) for step in tea.steps)
    return [
        tea.model_copy(update={"split": "test", "video_id": "held out"}),
        tea.model_copy(update={"split": "train", "steps": sure}),
        tea.model_copy(update={"split": "train", "steps": sure, "dialogue_id": "tea#1", "turns": tea.turns[:1]}),
        tea.model_copy(update={"dataset": "silent", "turns": (), "steps": ()}),
    ]


def test_dialogues_count_each_and_videos_once() -> None:
    groups = measure(dialogues(), lambda _: None)
    assert list(groups) == [("sample", "train"), ("sample", "test"), ("silent", "")]
    train = groups["sample", "train"]
    assert (train.dialogues, len(train.frames), train.dialogue_frames) == (2, 1, 120)
    assert train.of["video_length"] == [0.5]
    assert train.of["steps"] == [3]
    assert train.of["step_duration"] == [9.0, 7.5, 5.5]
    assert train.of["confidence"] == [0.5] * 3
    assert train.of["user_turns"] == [4.0, 2.0]
    assert train.of["assistant_turns"] == [10.0, 0.0]


def test_rates_are_shares_of_the_frames_that_decide_something() -> None:
    """Five utterances; five frames change the state, because S1 completes where S2 starts."""
    test = measure(dialogues(), lambda _: None)["sample", "test"]
    assert test.of["speak_rate"] == pytest.approx([100 * 5 / 60])
    assert test.of["update_rate"] == pytest.approx([100 * 5 / 60])
    assert test.row()["speak frames"] == "8.33 %"


def test_the_embeddings_frames_come_before_the_stated_duration() -> None:
    test = measure(dialogues(), lambda video: 120 if video == "held out" else None)["sample", "test"]
    assert test.of["video_length"] == [1.0]


def test_what_a_group_lacks_is_not_counted_as_nothing() -> None:
    silent = measure(dialogues(), lambda _: None)["silent", ""]
    assert silent.of["speak_rate"] == silent.of["update_rate"] == silent.of["user_turns"] == []
    assert silent.row()["confidence"] == "-"


def test_one_file_a_measure_and_a_page_that_holds_them_all(tmp_path: Path) -> None:
    page, *plots = plot_statistics(dialogues(), str(tmp_path))
    assert [Path(plot).stem for plot in plots] == [each.name for each in MEASURES]
    for plot in plots:
        assert ET.parse(plot).getroot().tag.endswith("svg")
    html = Path(page).read_text()
    assert html.count("data:image/svg+xml;base64,") == len(MEASURES)
    assert not re.search(r"https?://", html)
    assert "held out" not in html
    assert html.count("<tr>") == 1 + 3


def test_a_measure_without_a_value_is_named_and_a_data_sets_name_stays_text(tmp_path: Path) -> None:
    odd = tea_dialogue().model_copy(update={"dataset": "<b>$x_1$</b>"})
    page, *plots = plot_statistics([odd], str(tmp_path))
    html = Path(page).read_text()
    assert len(plots) == len(MEASURES) - 1
    assert "without a plot: confidence of steps" in " ".join(html.split())
    assert "<b>" not in html


def test_no_dialogue_at_all_is_a_page_without_plots(tmp_path: Path) -> None:
    assert len(plot_statistics([], str(tmp_path))) == 1


@pytest.mark.parametrize("data_sets", [1, 2, 4, 5])
def test_a_row_that_is_not_full_shows_no_empty_panels(data_sets: int, tmp_path: Path) -> None:
    tea = tea_dialogue()
    plot_statistics([tea.model_copy(update={"dataset": f"kitchen {n}"}) for n in range(data_sets)], str(tmp_path))
    svg = (tmp_path / "labels/plots/video_length.svg").read_text()
    assert len(re.findall(r'id="axes_\d+"', svg)) == data_sets
