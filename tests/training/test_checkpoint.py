"""Checkpoints belong to no number of workers and no backend: real DeepSpeed on gloo, without Ray."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prospect.data.batches import SamplingSettings
from prospect.data.embeddings import EmbeddingStore
from prospect.errors import CheckpointError
from prospect.model.checkpoint import load_model
from prospect.model.configuration import LoraSettings
from prospect.training.backend import PlainBackend
from prospect.training.checkpoint import read_checkpoint, whole_checkpoints
from prospect.training.progress import read_events
from prospect.training.settings import EarlyStopping, TrainingError, TrainingSettings
from prospect.training.worker import TrainingData, WorkerJob
from tests.training import ranks
from tests.world import CONTEXT, MODEL, World, frames

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
    brief = CONTEXT.model_copy(update={"max_utterance_tokens": 4, "max_delta_tokens": 4})  # a random model babbles
    return at(WorkerJob(model, training, brief, tmp_path, tmp_path, store.root, {}), "whole", world)


def at(job: WorkerJob, name: str, world: World, **training: object) -> WorkerJob:
    """The job as a run of another name."""
    folder = job.cache / name
    world.tokenizer.save_pretrained(folder / "tokenizer")  # type: ignore[attr-defined]
    return replace(job, folder=folder, training=job.training.model_copy(update=training))


def losses(job: WorkerJob) -> dict[int, float]:
    """By step; of a step done twice, the later."""
    events = [event for event, _ in read_events(job.folder / "metrics.jsonl")]
    return {event["step"]: event["loss"] for event in events if event["kind"] == "step"}


def steps_done(job: WorkerJob) -> list[int]:
    return [event["step"] for event, _ in read_events(job.folder / "metrics.jsonl") if event["kind"] == "step"]


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
    assert_same_course(resized, whole, 1e-4)
    for run in (whole, resized):  # the last validation streams, on as many ranks as there are
        *_, last = (event for event, _ in read_events(run.folder / "metrics.jsonl") if event["kind"] == "validation")
        assert {"loss", "speak", "state"} <= last["losses"].keys()
        assert {"speak_f1", "state_accuracy", "stream_turn_f1", "stream_slot_accuracy"} <= last["scores"].keys()


def test_a_run_goes_from_one_card_to_deepspeed_and_back(
    groups: dict[int, ranks.Ranks], job: WorkerJob, data: TrainingData, world: World
) -> None:
    """The plain backend's course is DeepSpeed's, so that four of six steps on it and back change nothing."""
    whole, mixed = at(job, "whole", world), at(job, "mixed", world, zero_stage=3)
    ranks.train("plain", whole, data)
    ranks.train("plain", mixed, data, 2)
    groups[2].run(ranks.train, "zero", mixed, data, 4)
    ranks.train("plain", mixed, data)
    assert_same_course(mixed, whole, 1e-4)


def test_zero3_writes_the_whole_model_and_lends_it_to_one_rank(
    groups: dict[int, ranks.Ranks], job: WorkerJob, data: TrainingData, world: World
) -> None:
    for adaptation in ("full", "lora"):
        model = job.model.model_copy(update={"adaptation": adaptation})
        here = at(replace(job, model=model), adaptation, world, zero_stage=3, offload_optimizer=True, max_steps=2)
        (together, alone), _ = groups[2].run(ranks.train_and_compare, here, data)
        assert alone == pytest.approx(together, rel=1e-5)
        loaded = load_model(here.folder / "model").model
        folder = here.folder / "checkpoints" / "step_0000002"
        trained = load_file(folder / "weights.safetensors")
        [head] = [tensor for name, tensor in trained.items() if "dst_state_head" in name and "frame.weight" in name]
        assert torch.equal(loaded.dst_state_head.frame.weight, head)
        assert loaded.model.layers[0].mlp.up_proj.weight.shape == (512, 256)
        if adaptation == "lora":
            assert all("lora" in name or "modules_to_save" in name or "tokens" in name for name in trained)


def test_an_interrupted_run_ends_as_the_undisturbed_one(job: WorkerJob, data: TrainingData, world: World) -> None:
    """On the same backend to the last bit, dropout and the frames' noise included; steps 4 and 5 are done twice."""
    lora = replace(job, model=job.model.model_copy(update={"adaptation": "lora"}))
    whole, broken = at(lora, "whole", world), at(lora, "broken", world)
    summary = ranks.train("plain", whole, data)
    assert ranks.train("plain", broken, data, 5) is None
    assert ranks.train("plain", broken, data) == summary
    assert_same_course(broken, whole, 0)
    assert [f.name for f in sorted((broken.folder / "checkpoints").iterdir())] == ["step_0000004", "step_0000006"]


def test_a_damaged_checkpoint_is_passed_over(job: WorkerJob, data: TrainingData, world: World) -> None:
    job = at(job, "damaged", world)
    ranks.train("plain", job, data, 5)
    newest, older = (job.folder / "checkpoints" / f"step_000000{step}" for step in (4, 2))
    with (newest / "exp_avg.safetensors").open("r+b") as file:
        file.truncate(1000)
    assert whole_checkpoints(job.folder / "checkpoints") == [older]
    with pytest.raises(CheckpointError, match="step_0000004: incomplete"):
        read_checkpoint(PlainBackend(world.model(), job.training), newest)
    with pytest.raises(CheckpointError, match=r"step_0000002: .*is \[256, 256\] there and \[256, 32\] in the model"):
        read_checkpoint(PlainBackend(world.model(), job.training), older)
    ranks.train("plain", job, data)
    assert steps_done(job) == [0, 1, 2, 3, 4, 2, 3, 4, 5]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 30 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_ends_the_run_in_a_sentence_and_leaves_no_half_checkpoint(
    job: WorkerJob, data: TrainingData, world: World, small_disk: Path
) -> None:
    """One checkpoint of the wide model takes 18 MB: the second does not fit, and does when there is room."""
    whole = at(job, "whole", world)
    ranks.train("plain", whole, data)
    job = replace(at(job, "full", world), folder=small_disk / "run")
    shutil.copytree(whole.folder / "tokenizer", job.folder / "tokenizer")
    with pytest.raises(TrainingError, match=r"cannot be written .*No space left.* it continues after step 2"):
        ranks.train("plain", job, data)
    assert [folder.name for folder in (job.folder / "checkpoints").iterdir()] == ["step_0000002"]
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    ranks.train("plain", job, data)
    assert_same_course(job, whole, 0)


def test_a_lost_embedding_ends_the_run_on_all_ranks(
    groups: dict[int, ranks.Ranks], job: WorkerJob, data: TrainingData, world: World
) -> None:
    Path(job.store, "v3.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"video 'v3' has no embedding in .*embeddings; run jobs/embed.py for it"):
        groups[2].run(ranks.train, "zero", job, data)


def test_early_stopping_keeps_the_best_weights(job: WorkerJob, data: TrainingData, world: World) -> None:
    """A learning rate that is far too high: validation is at its best first."""
    rule = EarlyStopping(metric="speak", patience=2)
    wild = {"early_stopping": rule, "learning_rate": 0.3, "warmup_steps": 0, "eval_every": 1, "max_steps": 60}
    job = at(job, "early", world, **wild)
    assert ranks.train("plain", job, data, 1) is None
    summary = ranks.train("plain", job, data)
    events = [event for event, _ in read_events(job.folder / "metrics.jsonl")]
    validations = [event for event in events if event["kind"] == "validation"]
    seen = {event["step"] + 1: {**event["losses"], **event["scores"]} for event in validations}
    best = min(seen, key=lambda step: seen[step]["speak"])
    assert summary is not None
    assert summary["step"] == max(seen) == best + 2
    assert summary["validation"] == seen[best]
    [stopped] = [event for event in events if event["kind"] == "stopped"]
    assert stopped["best_step"] == best
    kept = load_file(job.folder / "best" / "weights.safetensors")["dst_update_head.layers.0.weight"]
    assert torch.equal(load_model(job.folder / "model").model.dst_update_head.layers[0].weight, kept)
    assert ranks.train("plain", job, data) == summary, "what was stopped stays stopped"


def test_an_unknown_metric_names_those_that_are_measured(job: WorkerJob, data: TrainingData, world: World) -> None:
    job = at(job, "metric", world, early_stopping=EarlyStopping(metric="f1"), eval_every=1)
    with pytest.raises(TrainingError, match="metric is 'f1', but validation measures loss, speaking_text, dst_text"):
        ranks.train("plain", job, data)
