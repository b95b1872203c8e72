"""The sample corpus on disk: real MP4 whose pictures change just before the events."""

import json
import math
from pathlib import Path

import av
import numpy as np
import pytest

from prospect.corpus.draw import VISIBLE_BEFORE_S, draw_corpus
from prospect.corpus.plan import plan_corpus, scene_at
from prospect.corpus.scene import Scene, draw_scene
from prospect.corpus.script import Script, ScriptSpan
from prospect.corpus.settings import CorpusSettings
from prospect.corpus.tasks import OBJECTS, TOOLS, Action, Task
from prospect.dialogue.schema import Dialogue
from prospect.errors import ConfigError
from prospect.hashing import hash_file

SETTINGS = CorpusSettings(seed=3, num_train=6, num_validation=1, num_test=2)
FPS = SETTINGS.source_fps
AHEAD = math.floor(VISIBLE_BEFORE_S * FPS)
"""Pictures that show a change before its event's time."""
CLEARLY = 20
"""Of 255: far above what compression or the hand's small movement changes in the mean of a square."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_corpus(SETTINGS, tmp_path_factory.mktemp("corpus"))


def decode(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == FPS
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def dialogues(folder: Path) -> list[Dialogue]:
    lines = (folder / "dialogues.jsonl").read_text().splitlines()
    return [Dialogue.model_validate_json(line) for line in lines]


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hash_file(path) for path in folder.rglob("*") if path.is_file()}


def test_the_record_of_every_video_lies_beside_it_with_the_videos_duration(corpus: Path) -> None:
    records = dialogues(corpus)
    assert {f"{record.video_id}.mp4" for record in records} == {path.name for path in (corpus / "videos").iterdir()}
    for record in records:
        pictures = decode(corpus / "videos" / f"{record.video_id}.mp4")
        assert pictures.shape == (record.duration * FPS, SETTINGS.image_size, SETTINGS.image_size, 3)


def test_equal_settings_draw_equal_files(corpus: Path, tmp_path: Path) -> None:
    assert files(draw_corpus(SETTINGS, tmp_path)) == files(corpus)


def test_records_of_an_earlier_version_are_written_anew_beside_the_same_pictures(corpus: Path) -> None:
    before, pictures = (corpus / "dialogues.jsonl").read_text(), sorted((corpus / "videos").iterdir())
    times = [path.stat().st_mtime_ns for path in pictures]
    (corpus / "dialogues.jsonl").write_text(before.replace("progress", "advance"))
    draw_corpus(SETTINGS, corpus)
    assert (corpus / "dialogues.jsonl").read_text() == before
    assert [path.stat().st_mtime_ns for path in pictures] == times


def square_of(picture: np.ndarray, video_place: int) -> np.ndarray:
    side = SETTINGS.image_size // 4
    top, left = video_place // 2 * side, video_place % 2 * 2 * side
    return picture[top : top + side, left : left + 2 * side].astype(float)


def test_every_change_shows_within_the_last_frame_before_its_event_and_not_earlier(corpus: Path) -> None:
    for video in plan_corpus(SETTINGS):
        pictures = decode(corpus / "videos" / f"{video.dialogue.video_id}.mp4")
        for span in video.script.spans:
            for time in (span.start, span.end):
                index = video.script.task.places[OBJECTS.index(span.work.object)]
                # What the frame sees that decides the event, and what the frame before it saw.
                decided = square_of(pictures[round(time * FPS) - 1], index)
                before = square_of(pictures[round((time - 0.5) * FPS) - 1], index)
                shortly_before = square_of(pictures[round(time * FPS) - AHEAD - 1], index)
                assert np.abs(decided - before).mean() > CLEARLY
                assert np.abs(decided - shortly_before).mean() > CLEARLY


def test_nothing_changes_between_events_but_the_hands_small_movement(corpus: Path) -> None:
    video = plan_corpus(SETTINGS)[0]
    pictures = decode(corpus / "videos" / f"{video.dialogue.video_id}.mp4").astype(float)
    first = round(video.script.spans[0].start * FPS) - AHEAD
    assert np.abs(pictures[:first] - pictures[0]).mean(axis=(1, 2, 3)).max() < 3


def test_a_picture_shows_neither_time_nor_order() -> None:
    """Two recipes, two orders, two paces: with the same things done, the same picture."""
    wash, cut = Action("ball", "wash"), Action("kite", "cut")
    places = tuple(range(len(OBJECTS)))
    ends = []
    for recipe, pace in (((wash, cut), 2.0), ((cut, wash), 3.5)):
        spans = tuple(ScriptSpan(1 + i * pace, 1 + (i + 1) * pace, work, i) for i, work in enumerate(recipe))
        script = Script(Task(recipe, ("moon",), places), "no_talk", 0.5, spans, (), 10.0)
        ends.append(scene_at(script, 9.0))
    assert ends[0] == ends[1]
    assert np.array_equal(*(draw_scene(scene, 64) for scene in ends))


def test_every_object_looks_different_untouched_held_and_after_each_action() -> None:
    looks = {
        draw_scene(Scene(((name, 0, done),), hand), 64).tobytes()
        for name in OBJECTS
        for done, hand in [(None, None)]
        + [(action, None) for action in TOOLS]
        + [(None, Action(name, action)) for action in TOOLS]
    }
    assert len(looks) == len(OBJECTS) * (1 + 2 * len(TOOLS))


def test_shuffled_places_move_objects() -> None:
    shuffled = plan_corpus(CorpusSettings(num_train=6, shuffle_places=True))
    assert len({video.script.task.places for video in shuffled}) > 1
    assert {video.script.task.places for video in plan_corpus(SETTINGS)} == {tuple(range(len(OBJECTS)))}


def test_a_half_drawn_corpus_goes_on_with_what_is_missing(corpus: Path, tmp_path: Path) -> None:
    wanted = files(corpus)

    class Stopped(Exception):  # noqa: N818
        pass

    def stop_after_two(there: int, total: int) -> None:
        if there == 2:
            raise Stopped

    with pytest.raises(Stopped):
        draw_corpus(SETTINGS, tmp_path, stop_after_two)
    assert not (tmp_path / "dialogues.jsonl").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "videos").iterdir()}
    assert 2 <= len(kept) < len(wanted)  # those that had begun are finished
    seen: list[tuple[int, int]] = []
    draw_corpus(SETTINGS, tmp_path, lambda there, total: seen.append((there, total)))
    assert seen == [(there, 9) for there in range(len(kept), 10)]
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert files(tmp_path) == wanted


def test_only_a_deleted_video_is_drawn_again(tmp_path: Path) -> None:
    settings = CorpusSettings(num_train=3, num_validation=0, num_test=0)
    draw_corpus(settings, tmp_path)
    before = {path: (path.stat().st_mtime_ns, hash_file(path)) for path in tmp_path.rglob("*") if path.is_file()}
    gone = tmp_path / "videos" / "train_0001.mp4"
    gone.unlink()
    draw_corpus(settings, tmp_path)
    after = {path: (path.stat().st_mtime_ns, hash_file(path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert after[gone][1] == before[gone][1]
    assert {path for path in before if after[path] != before[path]} == {gone}


def test_a_folder_with_a_corpus_of_other_settings_is_refused(corpus: Path) -> None:
    found = json.loads((corpus / "corpus.json").read_text())["fingerprint"]
    with pytest.raises(ConfigError, match=f"fingerprint {found}, wanted"):
        draw_corpus(SETTINGS.model_copy(update={"seed": 4}), corpus)
