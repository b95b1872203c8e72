"""From records and embeddings to clips: what is missing is named, what is broken is reported."""

from pathlib import Path

import numpy as np
import pytest
import torch

from prospect.data.cuts import make_clips
from prospect.data.embeddings import EmbeddingStore
from prospect.data.prepare import frame_statistics, read_records, training_texts
from prospect.data.settings import ClipSettings
from prospect.data.sources import DataSettings, to_jsonl
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.sequence import SequenceBuilder
from prospect.errors import DataError
from tests.factories import DIM, TOY_CONTEXT, ToyCorpus, toy_dialogue


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "embeddings")


@pytest.fixture
def data(tmp_path: Path) -> DataSettings:
    write(tmp_path / "dialogues.jsonl", [toy_dialogue(0), toy_dialogue(1)])
    return DataSettings(source="dialogues", path=tmp_path / "dialogues.jsonl")


def write(file: Path, dialogues: list[Dialogue]) -> Path:
    file.write_text(to_jsonl(dialogues))
    return file


def embed(store: EmbeddingStore, *videos: str, value: float = 0.0) -> None:
    for video in videos:
        store.write(video, np.full((20, 1, DIM), value, np.float16), fps=2, source_hash="none", fingerprint="f")


def test_without_embeddings_the_job_to_run_is_named(data: DataSettings, store: EmbeddingStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no embeddings in .*run jobs/embed.py first"):
        read_records(data, tmp_path / "labels.jsonl", store)
    embed(store, "v1")
    with pytest.raises(DataError, match=r"1 videos have no embedding in .* \(v0\); run jobs/embed.py for them"):
        read_records(data, tmp_path / "labels.jsonl", store)


def test_a_video_that_could_not_be_embedded_is_quarantined_with_its_reason(
    data: DataSettings, store: EmbeddingStore, tmp_path: Path
) -> None:
    embed(store, "v1")
    store.write_quarantine({"v0": {"path": "v0.mp4", "reason": "no video stream"}})
    records = read_records(data, tmp_path / "labels.jsonl", store)
    assert [d.video_id for d, _ in records.placed] == ["v1"]
    assert [(entry.id, entry.reason) for entry in records.quarantined] == [("v0/v0#0", "no video stream")]


def test_labels_of_other_records_are_refused(data: DataSettings, store: EmbeddingStore, tmp_path: Path) -> None:
    embed(store, "v0", "v1")
    labels = write(tmp_path / "labels.jsonl", [toy_dialogue(0), toy_dialogue(2)])
    with pytest.raises(DataError, match=r"made from other records.*lacks v1 v1#0.*run jobs/label.py"):
        read_records(data, labels, store)


def test_labels_are_used_where_the_labelling_job_ran(data: DataSettings, store: EmbeddingStore, tmp_path: Path) -> None:
    embed(store, "v0", "v1")
    labelled = [toy_dialogue(number).model_copy(update={"steps": (), "split": "test"}) for number in (1, 0)]
    records = read_records(data, write(tmp_path / "labels.jsonl", labelled), store)
    assert [(d.video_id, d.steps, d.split) for d, _ in records.placed] == [("v0", (), "train"), ("v1", (), "train")]
    assert records.fingerprint != read_records(data, tmp_path / "none", store).fingerprint


def test_a_dialogue_that_fits_no_context_is_left_out_and_reported(
    toys: ToyCorpus, data: DataSettings, store: EmbeddingStore, tmp_path: Path
) -> None:
    embed(store, "v0", "v1")
    records = read_records(data, tmp_path / "none", store)
    tight = TOY_CONTEXT.model_copy(update={"max_seq_len": 64})
    clips, quarantined = make_clips(records.placed, SequenceBuilder(toys.vocabulary, tight, 1), ClipSettings())
    assert (clips, len(quarantined)) == ([], 2)
    assert "raise it" in quarantined[0].reason


def test_frame_statistics_decorrelate_the_frames_and_damp_weak_directions(store: EmbeddingStore) -> None:
    """One direction is a hundred times stronger than the others; float16 sets the tolerance of 0.05."""
    frames = np.random.default_rng(0).standard_normal((500, 1, DIM)) @ (np.eye(DIM) + np.ones((DIM, DIM)))
    store.write("a", frames.astype(np.float16), fps=2.0, source_hash="x", fingerprint="tests")
    mean, whitening = map(torch.from_numpy, frame_statistics(store, ["a", "a"], seed=0))
    white = (torch.from_numpy(store.read("a").astype(np.float32)[:, 0]) - mean) @ whitening
    covariance = white.T @ white / len(white)
    variances = covariance.diagonal()
    assert torch.allclose(white.mean(0), torch.zeros(DIM), atol=1e-3)
    assert torch.allclose(covariance, torch.diag(variances), atol=0.05)
    assert (variances > 0.5).all()
    assert (variances < 1.01).all()


def test_the_tokenizer_sees_all_that_a_model_reads_and_writes() -> None:
    text = "\n".join(training_texts([toy_dialogue(0)]))
    for said in ("make tea", "S2 (in_progress) pour it", "Boil water.", "user: Hello", "S1->start; S1->complete"):
        assert said in text
