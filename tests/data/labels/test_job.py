"""Labelling as Ray Data runs it: what it writes, what it counts, and that nothing is left out silently."""

import csv
import json
from pathlib import Path

import pytest
from rich.console import Console

from prospect.cluster.label import label
from prospect.data.labels.llm.report import MappingResult
from prospect.data.labels.report import DialogueLabels, LabelReport, LabelRow
from prospect.data.labels.settings import LabelSettings
from prospect.data.labels.table import to_tsv
from prospect.data.labels.video import VideoLabels, by_video, label_video
from prospect.data.sources import DataSettings, load_dialogues, place_all, to_jsonl
from prospect.dialogue.schema import Annotation, Dialogue, Step, TimedTransition, Turn
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
def labelled(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LabelReport]:
    folder = tmp_path_factory.mktemp("labels")
    dialogues = [
        tea(),
        tea(dialogue_id="second"),
        tea(video_id="v2", split="test", duration=None),
        tea(video_id="v3", split="test", duration=None),
    ]
    (folder / "source.jsonl").write_text(to_jsonl(dialogues) + "{broken\n")
    corpus = load_dialogues(DataSettings(source="dialogues", path=folder / "source.jsonl"))
    return folder, label(corpus, str(folder / "storage"), {"v3": 60}.get)


def test_the_report_counts_each_data_set_and_split(labelled: tuple[Path, LabelReport]) -> None:
    _, report = labelled
    assert report.rows == (
        LabelRow("kitchen", "test", videos=2, hours=100 / 7200, dialogues=2, turns=4, steps=6, labels=8),
        LabelRow("kitchen", "train", videos=1, hours=20 / 7200, dialogues=2, turns=4, steps=6, labels=6, quarantined=2),
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
    assert "labels" in console.export_text()
    written = json.loads((folder / "storage/labels/report.json").read_text())
    assert [row["labels"] for row in written["rows"]] == [8, 6, 0]
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
    written = {str(file.relative_to(folder / "storage/labels")) for file in (folder / "storage/labels").rglob("*.*")}
    assert written == {
        "dialogues.jsonl",
        "labels.tsv",
        "report.json",
        "proassist/kitchen/test.json",
        "proassist/kitchen/train.json",
    }


def test_a_source_without_a_usable_dialogue_is_an_error_that_says_why(local_ray: None, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{broken\n")
    with pytest.raises(DataError, match=r"has no usable dialogue: .*a\.jsonl:1: record: the line is not"):
        label(load_dialogues(DataSettings(source="dialogues", path=tmp_path)), str(tmp_path / "storage"))


def test_the_real_dst_record_has_twelve_labels(local_ray: None, shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "proassist/6.1-prospect_training_data.json"
    report = label(load_dialogues(DataSettings(source="proassist_dst", path=path)), str(tmp_path))
    [row] = report.rows
    assert (row.dialogues, row.turns, row.steps, row.labels, row.illegal) == (1, 9, 6, 12, 0)
    assert not report.quarantined


def test_explicit_transitions_give_the_spans_of_the_table() -> None:
    changes = (
        TimedTransition(time=2.5, step=0, kind="start"),
        TimedTransition(time=7.0, step=0, kind="complete"),
    )
    dialogue = tea(steps=(Step(id="S1", name="boil\twater"),), explicit_transitions=changes)
    [row] = csv.DictReader(b"".join(to_tsv([dialogue])).decode().splitlines(), delimiter="\t")
    assert (row["start_ts"], row["end_ts"], row["name"]) == ("2.5", "7.0", "boil\twater")


def test_illegal_transitions_are_counted_under_the_named_policy() -> None:
    early = (TimedTransition(time=2.0, step=0, kind="complete"),)
    [(_, timeline)], _ = place_all([tea(explicit_transitions=early)], lambda _: None)
    assert DialogueLabels.of(timeline).illegal == 1
    assert DialogueLabels.of(timeline, "implied_start").illegal == 0


# Steps that nobody timed


def untimed(*lines: Annotation, **changes: object) -> Dialogue:
    """Boiled water and a tea bag, whose times only the annotators' lines tell; sugar was left out."""
    steps = (
        Step(id="S1", name="Boil water in the kettle", source="recipe"),
        Step(id="S2", name="Add sugar", performed=False, source="recipe"),
        Step(id="S3", name="Put a tea bag into the cup", source="recipe"),
    )
    return tea(steps=steps, annotations=lines, turns=(), duration=60.0, **changes)


KETTLE = Annotation(start=2.0, end=9.0, text="fill the kettle with water")
BOIL = Annotation(start=10.0, end=30.0, text="water boils in the kettle")
BAG = Annotation(start=41.0, end=44.0, text="put the tea bag into the cup")
LATE = Annotation(start=70.0, text="wash the cup")


def labels_of(dialogue: Dialogue, settings: LabelSettings | None = None, **changes: object) -> VideoLabels:
    [video], _ = by_video([dialogue], lambda _: None)
    return label_video(video.model_copy(update=changes), settings or LabelSettings())


def test_steps_get_their_spans_from_the_lines() -> None:
    found = labels_of(untimed(KETTLE, BOIL, BAG))
    assert found.steps is not None
    assert [(step.start, step.end, step.source) for step in found.steps] == [
        (2.0, 30.0, "aligner"),
        (None, None, "recipe"),
        (41.0, 44.0, "aligner"),
    ]
    assert all(0.5 < step.confidence <= 1 for step in found.steps if step.confidence is not None)
    assert found.labels[0].transitions == 4
    assert not found.quarantined


def test_a_line_past_the_end_is_quarantined_and_the_others_serve() -> None:
    found = labels_of(untimed(KETTLE, BAG, LATE))
    assert found.steps is not None
    assert found.steps[2].end == 44.0
    [record] = found.quarantined
    assert (record.field, record.reason) == ("annotations", "line 'wash the cup' starts past its end")


def test_lines_of_no_step_are_named(tmp_path: Path) -> None:
    start, done = Annotation(start=0.0, text="start"), Annotation(start=50.0, text="Done")
    found = labels_of(untimed(start, KETTLE, BOIL, BAG, done))
    assert found.steps is not None
    assert [(step.start, step.end) for step in found.steps] == [(2.0, 30.0), (None, None), (41.0, 44.0)]
    assert [record.reason for record in found.quarantined] == [
        "line 'start' belongs to no step",
        "line 'Done' belongs to no step",
    ]


def test_too_few_lines_leave_the_steps_untimed_and_say_so() -> None:
    found = labels_of(untimed(KETTLE))
    assert found.steps is None
    assert found.labels[0].quarantined == 1
    assert found.quarantined[0].reason == "1 lines for 2 steps; every step needs a line of its own"


def test_a_language_models_mapping_is_taken_and_the_aligner_says_how_likely_it_is() -> None:
    good = MappingResult("v1/main", "mapped", assignment=(0, 0, 1), key="a")
    odd = MappingResult("v1/main", "mapped", assignment=(0, 1, 1), key="b")
    likely, unlikely = (labels_of(untimed(KETTLE, BOIL, BAG), mapping=mapping).steps for mapping in (good, odd))
    assert likely is not None
    assert unlikely is not None
    assert (likely[0].end, unlikely[0].end) == (30.0, 9.0)
    assert likely[0].source == LabelSettings().llm.model
    assert likely[2].confidence > unlikely[2].confidence


def test_without_a_mapping_a_video_is_quarantined_or_aligned_as_the_settings_say() -> None:
    failed = labels_of(untimed(KETTLE, BAG), mapping=MappingResult("v1/main", "quarantine", reason="no answer came"))
    assert failed.steps is None
    assert [record.reason for record in failed.quarantined] == ["no answer came"]
    aligned = labels_of(untimed(KETTLE, BAG), mapping=MappingResult("v1/main", "aligner", reason="no answer came"))
    assert aligned.steps is not None


def test_steps_that_the_source_timed_stay_as_they_are() -> None:
    assert labels_of(tea(annotations=(KETTLE, BAG))).steps is None


def test_conversations_of_one_video_are_mapped_once() -> None:
    dialogues = [untimed(KETTLE, BAG), untimed(KETTLE, BAG, dialogue_id="second"), untimed(KETTLE, video_id="v2")]
    videos, places = by_video(dialogues, lambda _: None)
    assert places == [[0, 1], [2]]
    assert len(videos[0].dialogues) == 2


def test_the_real_generated_records_are_labelled(local_ray: None, shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "proassist/proassist_generated_records.json"
    corpus = load_dialogues(DataSettings(source="proassist_generated", path=path))
    report = label(corpus, str(tmp_path))
    assert {row.dataset: (row.labels, row.unlabelled) for row in report.rows} == {
        "assembly101": (16, 0),
        "ego4d-goalstep": (20, 0),
        "egoexolearn": (10, 0),
        "epickitchens": (18, 0),
        "holoassist": (16, 0),
    }
    written = load_dialogues(DataSettings(source="proassist_dst", path=tmp_path / "labels/proassist/assembly101"))
    [dialogue] = written.dialogues
    assert [step.source for step in dialogue.steps] == ["aligner"] * 8
    assert not any(dialogue.annotations for dialogue in corpus.dialogues)
