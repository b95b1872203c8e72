"""The page on one video's labels: everything is on it, nothing outside of it."""

import base64
import io
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import ipc

from prospect.data.sources import Corpus, QuarantinedRecord, to_jsonl
from prospect.dialogue.schema import Annotation, Dialogue, Step, TimedTransition, Turn
from prospect.dialogue.state import StepState, TaskState
from prospect.dialogue.timeline import place
from prospect.errors import ConfigError
from prospect.reports.preview import page as preview_page
from prospect.reports.preview.page import DialogueTracks, preview_video, write_preview
from prospect.reports.preview.thumbnails import Thumbnail, pictures_of, thumbnails
from prospect.reports.preview.tracks import (
    TrackMark,
    annotation_boxes,
    clock,
    events_of,
    state_text,
    step_rows,
    turn_boxes,
)
from prospect.vision.pictures import decode_picture
from tests.factories import tea_dialogue
from tests.needs import needs
from tests.reports.parsed import Page
from tests.vision.videos import flat_picture, index_of, write_video

SCRIPT = "<script>alert('x')</script> & \"quotes\""


def written(path: str) -> Page:
    return Page(Path(path).read_text())


def pixels_of(picture: Thumbnail) -> np.ndarray:
    return decode_picture(base64.b64decode(picture.uri.partition(",")[2]))


def encode_picture(pixels: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG")
    return data.getvalue()


def rich_dialogue() -> Dialogue:
    """`tea_dialogue` with confidences, annotation lines, a skipped step, markup in its texts and a turn too late."""
    tea = tea_dialogue()
    steps = (
        tea.steps[0].model_copy(update={"confidence": 0.3, "source": "aligner"}),
        *tea.steps[1:],
        Step(id="S4", name=SCRIPT, performed=False),
        Step(id="S5", name="drink"),
    )
    turns = (*tea.turns, Turn(role="user", time=20.0, text=SCRIPT), Turn(role="user", time=99.0, text="Too 'late'!"))
    lines = (
        Annotation(start=3, end=12, text="boils water"),
        Annotation(start=4, text=SCRIPT, depth=1),
        Annotation(start=8, end=14, text="takes a cup", mistake="the wrong one"),
    )
    return tea.model_copy(update={"steps": steps, "turns": turns, "annotations": lines})


def illegal_dialogue() -> Dialogue:
    """The same video: S2 is completed and never started."""
    tea = tea_dialogue()
    changes = ((3.0, 0, "start"), (12.0, 0, "complete"), (19.5, 1, "complete"))
    stated = tuple(TimedTransition(time=time, step=step, kind=kind) for time, step, kind in changes)
    steps = tuple(Step(id=step.id, name=step.name) for step in tea.steps)
    return tea.model_copy(update={"dialogue_id": "tea#1", "steps": steps, "explicit_transitions": stated})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    record = QuarantinedRecord("sample", "tea/tea#2", "turns.0.time", "Input should be greater than 0")
    both = [rich_dialogue(), illegal_dialogue()]
    root = tmp_path_factory.mktemp("storage")
    return written(write_preview("tea", both, None, str(root), quarantined=[record]))


def test_every_step_has_a_row_and_every_step_with_times_a_bar(page: Page) -> None:
    assert len(page.of_class("row", "step")) == 5 + 3
    assert len(page.of_class("bar")) == 3 + 2  # of the second dialogue's steps, S3 has no transition
    assert "not performed" in page.text
    assert "no times known" in page.text


def test_confidence_is_told_and_makes_the_bar_fainter(page: Page) -> None:
    assert "0:03 to 0:12, confidence 0.30, aligner" in page.text
    assert sorted({bar["style"].split("opacity:")[1] for bar in page.of_class("bar")}) == ["0.47", "1.00"]


def test_every_event_that_has_a_frame_has_one_marker_and_every_event_one_line(page: Page) -> None:
    for number, dialogue in enumerate((rich_dialogue(), illegal_dialogue())):
        events = events_of(dialogue, place(dialogue, 60))
        ids = [attributes.get("id", "") for _, attributes in page.elements]
        marks = [name for name in ids if name.startswith(f"d{number}m")]
        lines = [name for name in ids if name.startswith(f"d{number}e")]
        assert sorted(marks) == sorted(f"d{number}m{i}" for i, e in enumerate(events) if e.frame is not None)
        assert lines == [f"d{number}e{i}" for i in range(len(events))]


def test_every_link_leads_somewhere_on_the_page(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for tag, a in page.elements if tag == "a"} <= set(ids)


def test_all_turns_are_there_word_for_word(page: Page) -> None:
    for turn in (*rich_dialogue().turns, *illegal_dialogue().turns):
        assert turn.text in page.text


def test_texts_stay_texts(page: Page) -> None:
    scripts = [attributes.get("type") for tag, attributes in page.elements if tag == "script"]
    assert scripts == ["application/json", None], "the page's own, and its pictures"
    assert SCRIPT in page.text


def test_what_does_not_count_is_marked_with_its_reason(page: Page) -> None:
    assert "illegal, not applied: S2 is not_started, so it cannot complete" in page.text
    assert "time 99 s lies beyond the video's end at 30 s" in page.text
    assert "Input should be greater than 0" in page.text
    assert len(page.of_class("mark", "wrong")) == 1
    assert sum(tag == "tr" and a.get("class") == "wrong" for tag, a in page.elements) == 2


def test_annotation_lines_are_there_by_depth_with_their_mistakes(page: Page) -> None:
    assert len(page.of_class("annotation")) == 3
    assert len(page.of_class("row", "notes")) == 2
    assert "takes a cup (mistake: the wrong one)" in page.text


def test_each_dialogue_can_be_chosen_and_shows_its_clips(page: Page) -> None:
    assert sum(tag == "option" for tag, _ in page.elements) == 2
    assert len(page.of_class("clip")) >= 2
    assert "context.max_seq_len=4096" in page.text


def test_the_page_holds_everything_that_it_shows(tmp_path: Path) -> None:
    video = tmp_path / "tea.mp4"
    write_video(video, [k / 2 for k in range(60)], rate=2)
    html = Path(write_preview("tea", [rich_dialogue()], video, str(tmp_path))).read_text()
    assert not re.search(r"https?://|url\(|@import", html)
    sources = [a[name] for _, a in Page(html).elements for name in ("src", "srcset") if name in a]
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)


def test_thumbnails_are_the_pictures_of_their_frames_and_no_more_than_asked_for(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", [k / 2 for k in range(101)], rate=2)
    total, shown = thumbnails(video, 48)
    assert total == 101
    assert [picture.frame for picture in shown] == list(range(2, 101, 3))
    assert [picture.first for picture in shown] == list(range(0, 99, 3))
    for picture in shown:
        pixels = pixels_of(picture)
        assert pixels.shape == (120, 160, 3)
        assert index_of(pixels) == picture.frame % 27


def test_every_event_has_the_picture_of_its_own_frame(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", [k / 2 for k in range(101)], rate=2)
    found = pictures_of(video, [0, 7, 26, 99])
    assert {frame: index_of(pixels_of(Thumbnail(frame, frame, uri))) for frame, uri in found.items()} == {
        0: 0, 7: 7, 26: 26, 99: 99 % 27
    }  # fmt: skip
    assert pictures_of(video, []) == {}


def test_of_very_many_events_as_many_have_a_picture_as_fit_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview_page, "MAX_EVENT_PICTURES", 4)
    marks = [TrackMark("user", "Next?", frame, frame / 2) for frame in range(20)] + [TrackMark("left out", "x")]
    tracks = DialogueTracks(rich_dialogue(), marks, {}, [], [], [])
    assert preview_page._event_frames([tracks, tracks]) == [0, 5, 10, 15]


def test_thumbnails_of_a_frames_file_are_its_own_pictures(tmp_path: Path) -> None:
    rows = [base64.b64encode(encode_picture(flat_picture(k))).decode() for k in range(10)]
    path = tmp_path / "v.arrow"
    with ipc.new_file(path, pa.schema([("frame", pa.string())])) as file:
        file.write(pa.table({"frame": rows}))
    total, shown = thumbnails(path, 5)
    assert (total, [picture.frame for picture in shown]) == (10, [1, 3, 5, 7, 9])
    assert [index_of(pixels_of(picture)) for picture in shown] == [1, 3, 5, 7, 9]


def test_a_missing_video_and_a_broken_one_are_noted(page: Page, tmp_path: Path) -> None:
    assert "No pictures: no video file was found." in page.text
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    path = write_preview("tea", [tea_dialogue()], broken, str(tmp_path))
    assert f"No pictures: video {broken} is" in written(path).text


def test_a_file_that_is_not_the_embedded_video_is_noted(tmp_path: Path) -> None:
    video = write_video(tmp_path / "tea.mp4", [k / 2 for k in range(8)], rate=2)
    path = write_preview("tea", [tea_dialogue()], video, str(tmp_path), num_frames=60)
    assert "The video file has 8 frames, its embedding 60" in written(path).text


def test_a_recipe_of_many_steps_is_one_page(tmp_path: Path) -> None:
    steps = tuple(Step(id=f"S{n}", name=f"step {n}", start=4.0 * n, end=4.0 * n + 3) for n in range(1, 882))
    long = tea_dialogue().model_copy(update={"steps": steps, "duration": 3600.0})
    path = write_preview("tea", [long], None, str(tmp_path))
    assert len(written(path).of_class("row", "step")) == 881
    assert Path(path).stat().st_size < 2_000_000


def test_labels_of_the_labelling_job_come_before_the_source(tmp_path: Path) -> None:
    source = illegal_dialogue()
    corpus = Corpus([source], {})
    frames = {"tea": 60}.get
    assert "has not labelled it" in written(preview_video("tea", corpus, str(tmp_path), frames)).text
    (tmp_path / "labels" / "dialogues.jsonl").write_text(to_jsonl([rich_dialogue(), tea_dialogue("other")]))
    page = written(preview_video("tea", corpus, str(tmp_path), frames))
    assert "confidence 0.30" in page.text
    assert "tea#1" not in page.text


def test_an_unknown_video_is_one_sentence_with_what_was_meant(tmp_path: Path) -> None:
    corpus = Corpus([tea_dialogue(f"video_{number:04d}") for number in range(40)], {})
    with pytest.raises(ConfigError, match=r"^Unknown video `vidoe_0007`.*did you mean `video_0007`.* and 35 more\.$"):
        preview_video("vidoe_0007", corpus, str(tmp_path), lambda _: None)


def test_a_video_id_with_a_slash_is_one_file(tmp_path: Path) -> None:
    path = write_preview("a/b c", [tea_dialogue("a/b c")], None, str(tmp_path))
    assert path == f"{tmp_path}/labels/preview/a%2Fb%20c.html"


def test_turns_of_one_frame_share_it_and_decided_events_stand_at_its_end() -> None:
    turns = tuple(
        Turn(role=role, time=5.0, text=text) for role, text in (("user", "a"), ("user", "b"), ("assistant", "c"))
    )
    dialogue = tea_dialogue().model_copy(update={"turns": turns, "steps": ()})
    events = events_of(dialogue, place(dialogue, 60))
    assert [box.left * 60 for _, box in turn_boxes(events, "user", 60)] == pytest.approx([10, 10.5])
    assert [box.left * 60 for _, box in turn_boxes(events, "assistant", 60)] == pytest.approx([11])


def test_a_step_counts_as_completed_from_the_frame_that_decides_it() -> None:
    tea = tea_dialogue()
    rows = step_rows(tea, events_of(tea, place(tea, 60)), 60)
    assert [row.completed for row in rows] == pytest.approx([12 / 30, 19.5 / 30, 27.5 / 30])


def test_lines_that_overlap_stand_below_each_other() -> None:
    lines = [Annotation(start=start, end=start + 5, text="x") for start in (0, 2, 5, 6, 20)]
    assert [box.lane for box in annotation_boxes(lines, 0, 30.0)] == [0, 1, 0, 2, 0]


def test_a_long_state_is_told_in_numbers() -> None:
    few, many = TaskState((StepState(2), StepState(1), StepState(0))), TaskState((StepState(2),) * 30 + (StepState(1),))
    assert [part[:2] for part in state_text(few).split()] == ["S1", "S2", "S3"]
    assert state_text(many) == "30 of 31 completed; in progress: S31"


@pytest.mark.parametrize(("seconds", "told"), [(0, "0:00"), (64, "1:04"), (64.5, "1:04.5"), (7264.04, "2:01:04")])
def test_clock(seconds: float, told: str) -> None:
    assert clock(seconds) == told


@needs("chromium", shutil.which("chromium"))
def test_a_browser_runs_the_page_without_an_error(tmp_path: Path) -> None:
    video = write_video(tmp_path / "tea.mp4", [k / 2 for k in range(130)], rate=2)
    path = Path(write_preview("tea", [rich_dialogue(), illegal_dialogue()], video, str(tmp_path)))
    check = "select('d0e3'); setZoom(8); document.title = told.textContent + '|' + shown.alt + '|' + zoom;"
    path.write_text(path.read_text().replace("</body>", f"<script>{check}</script></body>"))
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(["chromium", *flags, path.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    assert re.search(r"<title>Frame (\d+), 0:\d\d.*\|frame \1\|4</title>", done.stdout, re.DOTALL), done.stdout[:300]
