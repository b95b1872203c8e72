"""Labelling as Ray Data runs it: what it writes, what it counts, and that nothing is left out silently."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from rich.console import Console

from prospect.data.labels.job import label
from prospect.data.labels.report import DialogueLabels, LabelReport, LabelRow
from prospect.data.labels.table import to_tsv
from prospect.data.sources import DataSettings, load_dialogues, place_all, to_jsonl
from prospect.dialogue.schema import Dialogue, Step, TimedTransition, Turn
from prospect.errors import DataError


def tea(**changes: object) -> Dialogue:
    return Dialogue(
        **{
            "dataset": "kitchen",
            "video_id": "v1",
            "dialogue_id": "main",
            "split": "train",
            "duration": 10.0,
            "steps": (
                Step(id="S1", name="boil water", start=1.0, end=4.0),
                Step(id="S2", name="add sugar", performed=False),
                Step(id="S3", name="add a bag", start=4.0, end=20.0),
            ),
            "turns": (Turn(role="user", time=1.0, text="Hi"), Turn(role="assistant", time=4.0, text="Add a bag.")),
        }
        | changes
    )


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def labelled(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LabelReport]:
    folder = tmp_path_factory.mktemp("labels")
    dialogues = [
        tea(),
        tea(dialogue_id="second"),
        tea(video_id="v2", split="test", duration=None),
        tea(video_id="v3", split="test", duration=None),
    ]
    (folder / "source.jsonl").write_text(to_jsonl(dialogues) + "{broken\n")
    settings = DataSettings(source="dialogues", path=folder / "source.jsonl")
    return folder, label(settings, str(folder / "storage"), {"v3": 60})


def test_the_report_counts_each_data_set_and_split(labelled: tuple[Path, LabelReport]) -> None:
    _, report = labelled
    assert report.rows == (
        LabelRow("kitchen", "test", videos=2, hours=100 / 7200, dialogues=2, turns=4, steps=6, transitions=8),
        LabelRow(
            "kitchen", "train", videos=1, hours=20 / 7200, dialogues=2, turns=4, steps=6, transitions=6, quarantined=2
        ),
        LabelRow("unknown", "unread", quarantined=1),
    )
    assert [(record.id, record.field) for record in report.quarantined] == [
        ("source.jsonl:5", "record"),
        ("v1/main", "S3->complete"),
        ("v1/second", "S3->complete"),
    ]


def test_the_report_is_readable_as_a_table_and_as_json(labelled: tuple[Path, LabelReport]) -> None:
    folder, report = labelled
    console = Console(width=120, record=True, file=(folder / "console.txt").open("w"))
    console.print(report)
    assert "transitions" in console.export_text()
    written = json.loads((folder / "storage/labels/report.json").read_text())
    assert [row["transitions"] for row in written["rows"]] == [8, 6, 0]
    assert len(written["quarantined"]) == 3


def test_labelled_dialogues_read_back_equal(labelled: tuple[Path, LabelReport]) -> None:
    folder, _ = labelled
    source = load_dialogues(DataSettings(source="dialogues", path=folder / "source.jsonl"))
    written = load_dialogues(DataSettings(source="dialogues", path=folder / "storage/labels/dialogues.jsonl"))
    assert written.dialogues == source.dialogues
    assert not written.quarantined


def test_the_table_has_one_row_for_every_step(labelled: tuple[Path, LabelReport]) -> None:
    folder, _ = labelled
    with (folder / "storage/labels/labels.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 12
    assert [(r["type"], r["id"], r["start_ts"], r["end_ts"], r["name"]) for r in rows[:3]] == [
        ("step", "S1", "1.0", "4.0", "boil water"),
        ("step", "S2", "", "", "add sugar"),
        ("step", "S3", "4.0", "20.0", "add a bag"),
    ]


def test_no_half_written_file_stays_behind(labelled: tuple[Path, LabelReport]) -> None:
    folder, _ = labelled
    assert {file.name for file in (folder / "storage/labels").iterdir()} == {
        "dialogues.jsonl",
        "labels.tsv",
        "report.json",
    }


def test_a_source_without_a_usable_dialogue_is_an_error_that_says_why(local_ray: None, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{broken\n")
    with pytest.raises(DataError, match=r"holds no dialogue that can be used: .*a\.jsonl:1: record: the line is not"):
        label(DataSettings(source="dialogues", path=tmp_path), str(tmp_path / "storage"))


def test_the_real_dst_record_has_twelve_labels(local_ray: None, shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "proassist/6.1-prospect_training_data.json"
    report = label(DataSettings(source="proassist_dst", path=path), str(tmp_path))
    [row] = report.rows
    assert (row.dialogues, row.turns, row.steps, row.transitions, row.illegal) == (1, 9, 6, 12, 0)
    assert not report.quarantined


def test_explicit_transitions_give_the_spans_of_the_table() -> None:
    changes = (
        TimedTransition(time=2.5, step=0, kind="start"),
        TimedTransition(time=7.0, step=0, kind="complete"),
    )
    dialogue = tea(steps=(Step(id="S1", name="boil\twater"),), explicit_transitions=changes)
    [row] = csv.DictReader(to_tsv([dialogue]).splitlines(), delimiter="\t")
    assert (row["start_ts"], row["end_ts"], row["name"]) == ("2.5", "7.0", "boil\twater")


def test_illegal_transitions_are_counted_under_the_named_policy() -> None:
    early = (TimedTransition(time=2.0, step=0, kind="complete"),)
    [(_, timeline)], _ = place_all([tea(explicit_transitions=early)], lambda _: None)
    assert DialogueLabels.of(timeline).illegal == 1
    assert DialogueLabels.of(timeline, "implied_start").illegal == 0
