"""Saved predictions are scored again to the same numbers, without the model that made them."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from prospect.dialogue.prompt import ContextSettings
from prospect.errors import DataError
from prospect.evaluation.baselines import oracle, oracle_shifted, silence
from prospect.evaluation.metrics import evaluate
from prospect.evaluation.predictions import Predictions, load_predictions, predictions_file, save_predictions
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.stream import stream_dialogues
from prospect.evaluation.streamed import Stream
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from prospect.streaming.types import Refreshed
from tests.evaluation.test_lineage import LINEAGE
from tests.factories import CONTEXT, features, tea_dialogue, timeline_of, tiny_model, tiny_vocabulary

SETTINGS = EvaluationSettings(bootstrap_samples=20)


@pytest.fixture
def predictions(references) -> Predictions:
    late = [oracle_shifted(*reference, 3) for reference in references]
    model = [VideoDecisions(v.dialogue, v.timeline, v.decisions, v.first_frame, [Refreshed(9, 400, 90)]) for v in late]
    systems = {"trained model": model, "silence": [silence(*reference) for reference in references]}
    return Predictions(LINEAGE, {"run_name": "run 1"}, systems, {"tea": "/videos/tea.mp4"})


def test_what_is_read_is_what_was_saved(predictions: Predictions, tmp_path: Path, words) -> None:
    file = predictions_file(tmp_path / "run" / "test-1.json")
    assert file.name == "test-1.predictions.jsonl.gz"
    save_predictions(file, predictions)
    found = load_predictions(file)
    assert (found.lineage, found.manifest, found.videos) == (LINEAGE, predictions.manifest, predictions.videos)
    assert found.lineage.key == LINEAGE.key
    for name, videos in predictions.systems.items():
        again = found.systems[name]
        assert [v.dialogue for v in again] == [v.dialogue for v in videos]
        assert [v.timeline for v in again] == [v.timeline for v in videos]
        assert [list(v.decisions) for v in again] == [list(v.decisions) for v in videos]
        assert [list(v.refreshes) for v in again] == [list(v.refreshes) for v in videos]
        assert evaluate(again, SETTINGS, words).to_dict() == evaluate(videos, SETTINGS, words).to_dict()


def test_equal_predictions_are_equal_bytes(predictions: Predictions, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.gz", "b.gz")]
    for file in files:
        save_predictions(file, predictions)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_part_of_a_video_keeps_its_place_in_it(tea, tmp_path: Path) -> None:
    part = tea[0].model_copy(update={"first_frame": 20, "last_frame": 50})
    video = oracle(part, tea[1])
    file = tmp_path / "part.gz"
    save_predictions(file, Predictions(LINEAGE, {}, {"model": [video]}, {}))
    [again] = load_predictions(file).systems["model"]
    assert (again.frames, again.utterances) == (range(20, 50), video.utterances)


@pytest.mark.parametrize("damage", ["missing", "cut", "not gzip", "another version", "empty", "a row"])
def test_a_file_that_cannot_be_read_is_one_sentence(predictions: Predictions, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "x.predictions.jsonl.gz"
    save_predictions(file, predictions)
    whole = file.read_bytes()
    lines = gzip.decompress(whole).split(b"\n")
    files = {
        "cut": whole[:200],
        "not gzip": b'{"scores": {}}',
        "another version": gzip.compress(lines[0].replace(b'"format":1', b'"format":2')),
        "empty": gzip.compress(b""),
        "a row": gzip.compress(b"\n".join([lines[0], lines[1].replace(b'"num_frames":80', b'"num_frames":"x"')])),
    }
    file.unlink() if damage == "missing" else file.write_bytes(files[damage])
    with pytest.raises(DataError, match=r"^predictions .*x\.predictions\.jsonl\.gz: (unreadable|the file does not)"):
        load_predictions(file)


def test_a_stream_keeps_the_refreshes_of_its_context() -> None:
    vocabulary = tiny_vocabulary()
    context: ContextSettings = CONTEXT.model_copy(update={"max_seq_len": 330})
    settings = StreamingSettings(max_sessions=1, max_waiting_frames=100, speak_threshold=1.0, update_threshold=1.0)
    engine = StreamingEngine(tiny_model(vocabulary), context, settings)
    dialogue = tea_dialogue()
    placed = [(dialogue, timeline_of(dialogue))]
    [video] = stream_dialogues(engine, placed, lambda one, start, stop: features(one.video_id, start, stop))
    assert video.refreshes, "the context is too small for the video"
    assert all(one.tokens_after < one.tokens_before for one in video.refreshes)
    again = Stream.from_json(Stream.of(video).to_json()).beside((dialogue, video.timeline))
    assert replace(again, decisions=list(video.decisions)) == replace(video, decisions=list(video.decisions))
    assert list(again.decisions) == list(video.decisions)
