"""What validation measures, and that measuring changes nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file

from prospect.data.embeddings import EmbeddingStore
from prospect.dialogue.sequence import SequenceBuilder
from prospect.evaluation.settings import CalibrationSettings, EvaluationSettings
from prospect.model.checkpoint import load_model
from prospect.similarity import SimilaritySettings
from prospect.streaming.settings import StreamingSettings
from prospect.training import calibrate as calibrate_module
from prospect.training.backend import PlainBackend
from prospect.training.calibrate import DIALOGUES_AT_ONCE, CalibrationJob, calibrate, calibrate_run, max_sessions
from prospect.training.events import read_events
from prospect.training.settings import VALIDATION_METRICS, EarlyStopping, TrainingError, TrainingSettings
from prospect.training.validation import (
    StreamingValidation,
    head_curve,
    head_scores,
    state_scores,
    validate,
)
from prospect.training.worker import TrainingRun
from prospect.training.worker_spec import TrainingData, WorkerJob
from tests.factories import BRIEF, TOY_CONTEXT, TOY_MODEL, ToyCorpus, stored

SETTINGS = TrainingSettings(
    batch_size=4, micro_batch_size=1, max_steps=6, learning_rate=3e-3, warmup_steps=2, eval_every=3, save_every=6
)

NO_ENCODER = EvaluationSettings(similarity=SimilaritySettings(model=Path("/nowhere.onnx")))
"""With which nothing that is streamed can be scored."""

decisions = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=1)


@given(decisions, st.sampled_from([0.1, 0.3, 0.5]))
def test_scores_of_a_head(found: list[tuple[float, bool]], threshold: float) -> None:
    probabilities, labels = (torch.tensor(column, dtype=torch.float32) for column in zip(*found, strict=True))
    scores = head_scores(probabilities, labels, threshold)
    if not labels.any():
        assert scores == {}
        return
    hits = sum(p > threshold and label for p, label in found)
    acted = sum(p > threshold for p, _ in found)
    assert scores["recall"] == pytest.approx(hits / labels.sum().item())
    assert scores["precision"] == pytest.approx(hits / acted if acted else 0)
    assert scores["best_f1"] >= scores["f1"] - 1e-9
    if scores["best_threshold"] > 0:
        assert head_scores(probabilities, labels, scores["best_threshold"])["f1"] == pytest.approx(scores["best_f1"])
    curve = head_curve(probabilities, labels)
    assert len(curve["recall"]) == len(curve["precision"]) == len(curve["threshold"]) <= 200
    assert curve["recall"] == sorted(curve["recall"])
    assert curve["recall"][-1] == 1
    assert (curve["labels"], curve["positives"]) == (len(found), int(labels.sum()))


def test_scores_of_the_state_head() -> None:
    scores = state_scores(torch.tensor([[3.0, 1, 0], [0, 0, 0], [1, 0, 5]]))
    assert scores["state_accuracy"] == pytest.approx(0.8)
    assert scores["state_macro_f1"] == pytest.approx((6 / 8 + 10 / 11) / 2), "over the classes that have labels"
    assert state_scores(torch.zeros(3, 3)) == {}


@pytest.mark.parametrize("backend", ["heads", "token"])
def test_every_frame_is_scored_once_however_clips_are_cut_into_batches(toys: ToyCorpus, backend: str) -> None:
    model = toys.model(decision_backend=backend)
    found = [
        validate(PlainBackend(model, settings), toys.clips, toys.collator(), settings)
        for settings in (SETTINGS, SETTINGS.model_copy(update={"micro_batch_size": 5}))
    ]
    assert found[0].losses == pytest.approx(found[1].losses, rel=1e-5)
    assert found[0].scores == pytest.approx(found[1].scores, abs=1e-4)
    curves = found[0].curves
    assert {name: curve["labels"] for name, curve in curves.items()} == dict.fromkeys(
        ("speak", "update"), sum(map(len, toys.clips))
    )
    events = [event for clip in toys.clips for event in clip.events.values()]
    assert curves["speak"]["positives"] == sum(event.utterance is not None for event in events)
    assert curves["update"]["positives"] == sum(bool(event.delta) for event in events)
    assert {"speak_f1", "update_average_precision", "state_accuracy", "state_macro_f1"} <= found[0].scores.keys()


@pytest.fixture
def job(toys: ToyCorpus, tmp_path: Path) -> WorkerJob:
    store = stored(toys.dialogues, tmp_path / "embeddings")
    return WorkerJob(TOY_MODEL, SETTINGS, BRIEF, tmp_path, tmp_path, store.root, {})


def run(job: WorkerJob, name: str, toys: ToyCorpus, **training: object) -> tuple[dict, list[dict], Path]:
    """Summary, validations and folder of a run."""
    folder = job.folder / name
    toys.save_tokenizer(folder)
    settings = TrainingSettings.model_validate({**SETTINGS.model_dump(), **training})
    data = TrainingData(toys.clips[:6], toys.clips[6:])
    job = replace(job, folder=folder, training=settings)
    summary = TrainingRun(job, data, lambda model: PlainBackend(model, settings)).run()
    events = [event for event, _ in read_events(folder / "metrics.jsonl") if event["kind"] == "validation"]
    return summary, events, folder


def test_streaming_is_scored_and_disturbs_nothing(toys: ToyCorpus, job: WorkerJob) -> None:
    _, plain, undisturbed = run(job, "plain", toys, stream_videos=0)
    summary, streamed, folder = run(job, "streamed", toys, stream_every=2)
    one, other = (load_file(each / "model" / "model.safetensors") for each in (undisturbed, folder))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [event["step"] + 1 for event in plain] == [3, 6]
    assert [event["step"] + 1 for event in streamed] == [2, 3, 4, 6]
    scores = {event["step"] + 1: event["scores"] for event in streamed}
    assert {"stream_turn_f1", "stream_joint_goal_accuracy"} <= scores[2].keys() & scores[6].keys()
    assert not any(name.startswith("stream_") for name in scores[3])
    assert scores[3] == plain[0]["scores"]
    assert summary["validation"] == {**streamed[-1]["losses"], **streamed[-1]["scores"]}
    undefined = set(VALIDATION_METRICS) - summary["validation"].keys()
    assert summary["validation"].keys() <= set(VALIDATION_METRICS), "what early stopping may go by"
    unasked = {"summary_text", "lookup"}
    assert unasked <= undefined, "which nobody asks for"
    assert all(name.startswith("stream_") for name in undefined - unasked)
    assert (folder / "curves.json").is_file()


def test_calibration_takes_as_many_dialogues_as_memory_holds(
    toys: ToyCorpus, job: WorkerJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, folder = run(job, "roomy", toys, stream_videos=0, max_steps=1, eval_every=1)
    settings = CalibrationSettings(grid=(0.3, 0.5, 0.7))
    many = [clip.dialogue for clip in toys.clips] * 4
    task = CalibrationJob(
        folder, job.cache, job.store, many, job.context, settings, StreamingSettings(), EvaluationSettings()
    )
    loaded = load_model(folder / "model", allow_untrained=True)
    one = 3 * job.context.max_seq_len * loaded.model.kv_geometry.bytes_per_token(4)
    assert max_sessions(loaded, task) == 3 * DIALOGUES_AT_ONCE
    assert max_sessions(loaded, replace(task, dialogues=many[:2])) == 3 * 2
    for room, dialogues in ((one - 1, 1), (one, 1), (3 * one, 3)):
        monkeypatch.setattr("prospect.training.calibrate.CACHE_BYTES", room)
        assert max_sessions(loaded, task) == 3 * dialogues


@pytest.mark.each_backbone
def test_thresholds_are_found_once_and_travel_with_the_model(toys: ToyCorpus, job: WorkerJob) -> None:
    _, _, folder = run(job, "calibrated", toys, stream_videos=0, max_steps=2, eval_every=2)
    settings = CalibrationSettings(grid=(0.0, 0.5), min_events=1, videos=1)
    dialogues = [clip.dialogue for clip in toys.clips[6:]]
    streaming, evaluation = StreamingSettings(dst_decoder="readout"), EvaluationSettings(similarity_threshold=0)
    task = CalibrationJob(folder, job.cache, job.store, dialogues, job.context, settings, streaming, evaluation)
    lines = [*calibrate(task)]
    assert [line for line in lines if line.startswith("calibration of")] == [
        "calibration of thresholds, with CpuAttention on cpu",
        *(f"calibration of {decides}: 1/1 dialogues at 2 thresholds" for decides in ("update", "speak")),
    ]
    found = json.loads((folder / "calibration.json").read_text())
    assert [point["events"] for point in found["curves"]["speak"]["toy"]] == [2, 2]
    thresholds = load_model(folder / "model").model.config.thresholds
    assert thresholds == found["thresholds"]
    assert (lines[3].startswith("calibrated thresholds: toy ")) == bool(thresholds)

    config = folder / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "thresholds": None}))
    assert [*calibrate(task)] == lines[3:], "a run that was killed in between writes its model anew"
    assert load_model(folder / "model").model.config.thresholds == thresholds
    assert len([*calibrate(replace(task, settings=CalibrationSettings(grid=(0.3,), videos=1)))]) > len(lines[3:])


def test_a_run_can_stop_by_what_streaming_measures(toys: ToyCorpus, job: WorkerJob) -> None:
    rule = EarlyStopping(metric="stream_slot_accuracy", mode="max", patience=1, min_delta=1)
    summary, events, folder = run(job, "stopped", toys, stream_every=2, early_stopping=rule.model_dump())
    assert (summary["step"], [event["step"] + 1 for event in events]) == (4, [2, 3, 4])
    assert (folder / "best").is_dir()
    with pytest.raises(ValidationError, match="only streaming measures: set stream_every"):
        TrainingSettings(early_stopping=rule)


def test_a_last_validation_that_fails_costs_no_step_and_is_made_up_for(toys: ToyCorpus, job: WorkerJob) -> None:
    training = {"save_every": 100, "stream_videos": 1, "stream_minutes": 0.1}
    with pytest.raises(TrainingError, match=r"nowhere\.onnx"):
        run(replace(job, evaluation=NO_ENCODER), "failed", toys, **training)
    assert names_in(job.folder / "failed" / "checkpoints") == ["step_0000006"]
    summary, validations, folder = run(job, "failed", toys, **training)
    assert [event["step"] + 1 for event in validations] == [3, 6]
    assert summary["validation"] == {**validations[-1]["losses"], **validations[-1]["scores"]}
    assert {"speak_f1", "stream_slot_accuracy"} <= summary["validation"].keys()
    events = [event for event, _ in read_events(folder / "metrics.jsonl")]
    assert [event["step"] for event in events if event["kind"] == "step"] == list(range(6))
    assert run(job, "failed", toys, **training)[:2] == (summary, validations), "and not done again"


def test_a_validation_that_was_not_done_is_judged_once(toys: ToyCorpus, job: WorkerJob) -> None:
    """Early stopping counts the validations of a run that failed in the first of them as it counts an undisturbed's."""
    rule = EarlyStopping(metric="stream_slot_accuracy", mode="max", patience=1, min_delta=1)
    streams = {"stream_every": 2, "stream_videos": 1, "stream_minutes": 0.1}
    training = {"save_every": 2, "early_stopping": rule, **streams}
    with pytest.raises(TrainingError, match=r"nowhere\.onnx"):
        run(replace(job, evaluation=NO_ENCODER), "failed", toys, **training)
    summary, validations, folder = run(job, "failed", toys, **training)
    whole, expected, undisturbed = run(job, "undisturbed", toys, **training)
    assert summary == whole
    assert (summary["step"], summary["model_step"]) == (4, 2)
    assert [{**event, "time": 0} for event in validations] == [{**event, "time": 0} for event in expected]
    events = [event for event, _ in read_events(folder / "metrics.jsonl")]
    assert [event["step"] for event in events if event["kind"] == "start"] == [0, 2]
    for kept in ("checkpoints", "best"):
        assert names_in(folder / kept) == names_in(undisturbed / kept)


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_a_dialogue_that_cannot_be_streamed_ends_the_run_in_a_sentence(
    toys: ToyCorpus, job: WorkerJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toys.model()
    model.config.trained_steps = {"speaking": 1}
    backend = PlainBackend(model.train(), SETTINGS)
    tight = TOY_CONTEXT.model_copy(update={"max_seq_len": 160, "max_context_tokens": 120})
    validation = StreamingValidation(
        toys.clips,
        EmbeddingStore(job.store),
        SequenceBuilder(toys.vocabulary, tight, 1),
        StreamingSettings(),
        EvaluationSettings(),
        SETTINGS,
    )
    before = model.config._attn_implementation
    with pytest.raises(TrainingError, match="shorten them or raise"):
        validation.scores(backend)
    assert (model.training, model.config._attn_implementation) == (True, before)
    assert model.config.trained_steps == {"speaking": 1}
    raising: list[Exception] = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("a defect")]

    def fail(*_: object) -> None:
        raise raising.pop(0)

    monkeypatch.setattr("prospect.training.validation.stream_dialogues", fail)
    with pytest.raises(TrainingError, match=r"out of memory while 4 held-out videos .* lower training\.stream_videos"):
        validation.scores(backend)
    with pytest.raises(RuntimeError, match="a defect"):
        validation.scores(backend)


@pytest.mark.parametrize("failure", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("no kernel image")])
def test_a_calibration_that_fails_loses_no_training(
    toys: ToyCorpus, job: WorkerJob, failure: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is there, and the next start calibrates it."""
    _, _, folder = run(job, "uncalibrated", toys, stream_videos=0, max_steps=2, eval_every=2)
    data, settings = TrainingData(toys.clips[:6], toys.clips[6:]), CalibrationSettings(grid=(0.0, 0.5), min_events=1)
    there = replace(job, folder=folder, training=job.training.model_copy(update={"calibration": settings}))

    def fails(*arguments: object) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(calibrate_module, "StreamingEngine", fails)
        with pytest.raises(TrainingError, match=r"the model is complete, .*start the same run again"):
            calibrate_run(there, data, 2)
    assert load_model(folder / "model").model.config.thresholds is None
    calibrate_run(there, data, 2)
    assert load_model(folder / "model").model.config.thresholds
