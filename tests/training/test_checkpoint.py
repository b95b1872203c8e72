"""Checkpoints belong to no number of workers and no backend: real DeepSpeed on gloo, without Ray."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prospect.data.batches import SamplingSettings
from prospect.data.embeddings import EmbeddingStore
from prospect.model.checkpoint import load_model
from prospect.model.configuration import LoraSettings
from prospect.training.progress import read_events
from prospect.training.settings import TrainingSettings
from prospect.training.worker import TrainingData, WorkerJob
from tests.training import ranks
from tests.training.conftest import CONTEXT, MODEL, World, frames

WIDE = MODEL.tiny.model_copy(update={"hidden_size": 256, "intermediate_size": 512})
"""Wide enough for matrices above the 100,000 elements from which on ZeRO-3 partitions."""


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, ranks.Ranks]]:
    folder = tmp_path_factory.mktemp("meeting")
    with ranks.ranks(1, folder) as one, ranks.ranks(2, folder) as two:
        yield {1: one, 2: two}


@pytest.fixture
def data(world: World) -> TrainingData:
    return TrainingData(world.clips[:6], world.clips[6:])


@pytest.fixture
def job(world: World, tmp_path: Path) -> WorkerJob:
    store = EmbeddingStore(tmp_path / "embeddings")
    for clip in world.clips:
        video = clip.dialogue.video_id
        store.write(video, frames(video, 0, 40), fps=2, source_hash="none", fingerprint="f")
    training = TrainingSettings(
        batch_size=4,
        micro_batch_size=1,
        max_steps=6,
        learning_rate=3e-3,
        warmup_steps=2,
        save_every=2,
        eval_every=3,
        sampling=SamplingSettings(),
    )
    lora = LoraSettings(r=4, alpha=8, dropout=0.1)
    model = MODEL.model_copy(update={"tiny": WIDE, "frame_noise": 0.1, "lora": lora})
    return at(WorkerJob(model, training, CONTEXT, tmp_path, tmp_path, store.root, {}), "whole", world)


def at(job: WorkerJob, name: str, world: World, **training: object) -> WorkerJob:
    """The job as a run of another name."""
    folder = job.cache / name
    world.tokenizer.save_pretrained(folder / "tokenizer")  # type: ignore[attr-defined]
    return replace(job, folder=folder, training=job.training.model_copy(update=training))


def losses(job: WorkerJob) -> dict[int, float]:
    """By step; of a step done twice, the later."""
    events = [event for event, _ in read_events(job.folder / "metrics.jsonl")]
    return {event["step"]: event["loss"] for event in events if event["kind"] == "step"}


def state(job: WorkerJob) -> dict[str, torch.Tensor]:
    """Everything in the last checkpoint."""
    folder = job.folder / "checkpoints" / "step_0000006"
    return {f"{f.stem}/{name}": t for f in folder.glob("*.safetensors") for name, t in load_file(f).items()}


def assert_same_course(one: WorkerJob, other: WorkerJob, tolerance: float) -> None:
    """Losses, weights and moments differ by `tolerance` of the largest value of each tensor at most."""
    assert losses(one) == pytest.approx(losses(other), rel=tolerance)
    here, there = state(one), state(other)
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        worst = (tensor - there[name]).abs().max()
        assert worst <= tolerance * there[name].abs().max() + 1e-12, (name, worst, there[name].abs().max())


KINDS = {
    "zero2-lora": ("lora", {"zero_stage": 2}),
    "zero3-full": ("full", {"zero_stage": 3}),
}
RESIZES = {"2 to 1": (("zero", 2), ("zero", 1)), "1 to 2": (("zero", 1), ("zero", 2))}


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_with_another_number_of_workers(
    groups: dict[int, ranks.Ranks], job: WorkerJob, data: TrainingData, world: World, kind: str, resize: str
) -> None:
    adaptation, training = KINDS[kind]
    job = replace(job, model=job.model.model_copy(update={"adaptation": adaptation}))
    whole, resized = at(job, "whole", world, **training), at(job, "resized", world, **training)
    (first, before), (second, after) = RESIZES[resize]
    [summary, *_] = groups[before].run(ranks.train, first, whole, data)
    assert groups[before].run(ranks.train, first, resized, data, 5) == [None] * before
    [continued, *_] = groups[after].run(ranks.train, second, resized, data)
    assert continued["trained_steps"] == summary["trained_steps"]
    assert_same_course(resized, whole, 1e-3)
