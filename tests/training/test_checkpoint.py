"""Checkpoints belong to no number of workers and no backend: real DeepSpeed on gloo, without Ray."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prospect.data.settings import ClipSettings, LabelSamplingSettings
from prospect.errors import CheckpointError
from prospect.model.checkpoint import load_model
from prospect.model.settings import HEADS, LoraSettings
from prospect.training.backend import PlainBackend
from prospect.training.checkpoint import newest_checkpoint, read_checkpoint, whole_checkpoints
from prospect.training.events import read_events
from prospect.training.settings import EarlyStopping, ReadingSettings, TrainingError, TrainingSettings
from prospect.training.worker_spec import TrainingData, WorkerJob
from tests.factories import BRIEF, DIM, TOY_CONTEXT, TOY_MODEL, ToyCorpus, clips_of, stored, with_progress
from tests.needs import skip_without
from tests.training import ranks

WIDE = TOY_MODEL.tiny.model_copy(update={"hidden_size": 256, "intermediate_size": 512})
"""Wide enough for matrices above the 100,000 elements from which on ZeRO-3 partitions."""


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, ranks.Ranks]]:
    folder = tmp_path_factory.mktemp("meeting")
    with ranks.ranks(1, folder) as one, ranks.ranks(2, folder) as two:
        yield {1: one, 2: two}


@pytest.fixture
def data(toys: ToyCorpus) -> TrainingData:
    return TrainingData(toys.clips[:6], toys.clips[6:])


@pytest.fixture
def job(toys: ToyCorpus, tmp_path: Path) -> WorkerJob:
    store = stored(toys.dialogues, tmp_path / "embeddings")
    training = TrainingSettings(
        batch_size=4,
        micro_batch_size=1,
        max_steps=6,
        learning_rate=3e-3,
        warmup_steps=2,
        save_every=2,
        eval_every=3,
        sampling=LabelSamplingSettings(),
        reading=ReadingSettings(share=0.5),
    )
    lora = LoraSettings(r=4, alpha=8, dropout=0.1)
    model = TOY_MODEL.model_copy(update={"frame_noise": 0.1, "lora": lora})
    return at(WorkerJob(model, training, BRIEF, tmp_path, tmp_path, store.root, {}), "whole", toys)


def at(job: WorkerJob, name: str, toys: ToyCorpus, **training: object) -> WorkerJob:
    """The job as a run of another name."""
    folder = job.cache / name
    toys.save_tokenizer(folder)
    return replace(job, folder=folder, training=job.training.model_copy(update=training))


def built(job: WorkerJob, **model: object) -> WorkerJob:
    return replace(job, model=job.model.model_copy(update=model))


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


def assert_same_course(one: WorkerJob, other: WorkerJob, loss: float, tensors: float) -> None:
    """Losses differ by this share at most, weights and moments by this share of each tensor's largest value.

    A weight may differ by 2 % of one step instead: AdamW divides its gradient by the gradient's own size, so that a
    gradient of 1e-5 of the tensor's largest has an update in which a rounding error of 1e-7 is 1 %. The moments, which
    are not divided, have no such allowance; but the first, a mean of gradients that may cancel out, is rounded as they
    are, and the root of the second says how large they were.
    """
    assert losses(one) == pytest.approx(losses(other), rel=loss, abs=0)
    here, there = state(one), state(other)
    assert here.keys() == there.keys()
    for name, tensor in here.items():
        step = one.training.learning_rate if name.startswith("weights/") else 1e-12
        worst, scale = (tensor - there[name]).abs().max(), there[name].abs().max().clamp(min=step)
        if name.startswith("exp_avg/"):
            scale = max(scale, there[name.replace("exp_avg/", "exp_avg_sq/")].max().sqrt())
        allowed = max(tensors * scale, 0.02 * step)
        assert worst <= allowed, (name, worst, scale)


def clips_seen(job: WorkerJob) -> dict[int, list[str]]:
    """The clips of each step, of all ranks and whatever number of times."""
    seen: dict[int, set[str]] = {}
    for file in job.folder.glob("seen_*.jsonl"):
        for step, clips in map(json.loads, file.read_text().splitlines()):
            seen.setdefault(step, set()).update(clips)
    return {step: sorted(clips) for step, clips in seen.items()}


@dataclass(frozen=True)
class Kind:
    """A way to train with DeepSpeed, and its tolerances against one process without DeepSpeed.

    What is added up is added in another order. In bfloat16 gradients are rounded before they are added up, and Adam
    makes as much of a small one as of a large one: the same losses, with weights that are somewhat others.
    """

    model: dict[str, object]
    training: dict[str, object]
    losses: float = 1e-4
    tensors: float = 1e-4


KINDS = {
    # Noise belongs to a micro-batch, and by tokens each number of workers has its own.
    "zero1-full-by-tokens": Kind({"frame_noise": 0.0}, {"zero_stage": 1, "micro_batch_tokens": 750}),
    "zero2-lora": Kind({"adaptation": "lora"}, {"zero_stage": 2}),
    "zero2-lora-bfloat16": Kind({"adaptation": "lora", "dtype": "bfloat16"}, {"zero_stage": 2}, 5e-3, 0.3),
    "zero2-lora-offload": Kind({"adaptation": "lora"}, {"zero_stage": 2, "offload_optimizer": True}),
    "zero2-qlora": Kind({"adaptation": "qlora"}, {"zero_stage": 2}),
    "zero3-full": Kind({}, {"zero_stage": 3}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_with_another_number_of_workers(
    groups: dict[int, ranks.Ranks], job: WorkerJob, data: TrainingData, toys: ToyCorpus, kind: str
) -> None:
    """On one process without DeepSpeed, on two workers, on one and on two again: the undisturbed run's course.

    The frames' noise and LoRA's dropout are part of it.
    """
    chosen = KINDS[kind]
    if chosen.model.get("adaptation") == "qlora":
        skip_without("bitsandbytes", find_spec("bitsandbytes"))
    job = built(job, tiny=WIDE, **chosen.model)
    whole = at(job, "whole", toys, save_every=6)
    resized = at(job, "resized", toys, save_every=1, **chosen.training)
    summary = ranks.train("plain", whole, data)
    assert ranks.train("plain", resized, data, 1) is None
    assert groups[2].run(ranks.train, "zero", resized, data, 3) == [None] * 2
    assert groups[1].run(ranks.train, "zero", resized, data, 4) == [None]
    continued, _ = groups[2].run(ranks.train, "zero", resized, data)
    assert summary is not None
    assert continued["trained_steps"] == summary["trained_steps"]
    assert_same_course(resized, whole, chosen.losses, chosen.tensors)
    for run in (whole, resized):  # the last validation streams, on as many ranks as there are
        *_, last = (event for event, _ in read_events(run.folder / "metrics.jsonl") if event["kind"] == "validation")
        assert {"loss", "speak", "state"} <= last["losses"].keys()
        assert {"speak_f1", "state_accuracy", "stream_turn_f1", "stream_slot_accuracy"} <= last["scores"].keys()
    assert steps_done(resized) == list(range(6))
    seen = clips_seen(resized)
    assert seen == clips_seen(whole)
    for epoch in range(3):  # of two steps; the workers changed within the first and at the second
        assert sorted(seen[2 * epoch] + seen[2 * epoch + 1]) == sorted(clip.id for clip in data.train)


@pytest.mark.each_backbone
def test_zero3_in_bfloat16_writes_the_whole_adapter_and_lends_the_model_to_one_rank(
    groups: dict[int, ranks.Ranks], job: WorkerJob, data: TrainingData, toys: ToyCorpus
) -> None:
    """The token back-end reads rows of a partitioned matrix; the frames' whitening is a buffer beside weights."""
    job = built(job, adaptation="lora", tiny=WIDE, dtype="bfloat16", decision_backend="token", whiten_frames=True)
    options = {"zero_stage": 3, "offload_optimizer": True, "activation_checkpointing": True, "max_steps": 2}
    job = at(job, "bfloat16", toys, **options)
    whitening = torch.randn(DIM, DIM) * 0.01
    data = replace(data, frame_statistics=(torch.randn(DIM).numpy(), whitening.numpy()))
    (together, alone), _ = groups[2].run(ranks.train_and_compare, job, data)
    assert alone == pytest.approx(together, rel=1e-3)
    loaded = load_model(job.folder / "model").model
    assert torch.equal(loaded.mm_projector.whitening, whitening), "to the last bit, whatever the weights are"
    assert loaded.text.layers[0].mlp.up_proj.weight.shape == (512, 256)
    trained = load_file(job.folder / "checkpoints" / "step_0000002" / "weights.safetensors")
    [name] = [name for name in trained if "dst_state_head" in name and "frame.weight" in name]
    assert torch.equal(loaded.dst_state_head.frame.weight, trained[name].bfloat16())
    assert not torch.equal(trained[name].bfloat16().float(), trained[name]), "small updates add up in float32"
    assert all("lora" in name or "modules_to_save" in name or "tokens" in name for name in trained)


@pytest.mark.parametrize("offload", [False, True])
def test_on_as_many_workers_as_before_bfloat16_loses_no_bit(
    groups: dict[int, ranks.Ranks], job: WorkerJob, data: TrainingData, toys: ToyCorpus, offload: bool
) -> None:
    """The checkpoint has the optimizer's float32 weights, and not what the forward pass has of them."""
    job = built(job, adaptation="lora", tiny=WIDE, dtype="bfloat16")
    options = {"zero_stage": 2, "offload_optimizer": offload, "stream_videos": 0}
    whole, broken = at(job, "whole", toys, **options), at(job, "broken", toys, **options)
    groups[2].run(ranks.train, "zero", whole, data)
    assert groups[2].run(ranks.train, "zero", broken, data, 5) == [None] * 2
    groups[2].run(ranks.train, "zero", broken, data)
    assert_same_course(broken, whole, 0, 0)


@pytest.mark.each_backbone
def test_an_interrupted_run_ends_as_the_undisturbed_one(job: WorkerJob, data: TrainingData, toys: ToyCorpus) -> None:
    """On the same backend to the last bit, dropout and the frames' noise included; step 4 is done twice."""
    lora = replace(job, model=job.model.model_copy(update={"adaptation": "lora"}))
    whole, broken = at(lora, "whole", toys), at(lora, "broken", toys)
    summary = ranks.train("plain", whole, data)
    assert ranks.train("plain", broken, data, 5) is None
    assert ranks.train("plain", broken, data) == summary
    assert_same_course(broken, whole, 0, 0)
    assert steps_done(broken) == [0, 1, 2, 3, 4, 4, 5]
    assert clips_seen(broken) == clips_seen(whole)
    assert [f.name for f in sorted((broken.folder / "checkpoints").iterdir())] == ["step_0000004", "step_0000006"]


def test_a_damaged_checkpoint_is_passed_over_and_said(job: WorkerJob, data: TrainingData, toys: ToyCorpus) -> None:
    """Cut off, changed in place, or left half-written by a killed writer: training goes on from the one before."""
    job = at(job, "damaged", toys, keep_checkpoints=3)
    ranks.train("plain", job, data)
    checkpoints = job.folder / "checkpoints"
    oldest, older, newest = whole_checkpoints(checkpoints)
    shutil.copytree(oldest, checkpoints / "step_0000009.1234.partial")
    with (newest / "exp_avg.safetensors").open("r+b") as file:
        file.truncate(1000)
    with (older / "weights.safetensors").open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\xff" * 8)
    assert whole_checkpoints(checkpoints) == [oldest, older]
    assert newest_checkpoint(checkpoints)[0] == oldest
    with pytest.raises(CheckpointError, match=r"step_0000006: exp_avg.safetensors is missing or cut off"):
        read_checkpoint(PlainBackend(toys.model(), job.training), newest)
    other = PlainBackend(toys.model(tiny=WIDE), job.training)
    with pytest.raises(CheckpointError, match=r"step_0000002: .*is \[256, 32\] there and \[256, 256\] in the model"):
        read_checkpoint(other, oldest)
    ranks.train("plain", job, data)
    assert steps_done(job) == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5]
    said = [event["message"] for event, _ in read_events(job.folder / "metrics.jsonl") if event["kind"] == "warning"]
    assert "step_0000006: exp_avg.safetensors is missing or cut off" in said[0]
    assert "step_0000004: weights.safetensors is damaged" in said[1]
    assert whole_checkpoints(checkpoints) == [oldest, older, newest], "written again; what a killed writer left is gone"
    assert {folder.name for folder in checkpoints.iterdir()} == {oldest.name, older.name, newest.name}


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew_unasked(
    job: WorkerJob, data: TrainingData, toys: ToyCorpus
) -> None:
    job = at(job, "lost", toys, keep_checkpoints=1)
    ranks.train("plain", job, data, 3)
    [only] = (job.folder / "checkpoints").iterdir()
    (only / "checkpoint.json").write_text("{")
    with pytest.raises(
        TrainingError, match=r"step_0000002: checkpoint.json is missing or cut off; no undamaged checkpoint is left"
    ):
        ranks.train("plain", job, data)


@pytest.mark.parametrize("small_disk", ["30m"], indirect=True)
def test_a_full_disk_ends_the_run_in_a_sentence_and_leaves_no_half_checkpoint(
    job: WorkerJob, data: TrainingData, toys: ToyCorpus, small_disk: Path
) -> None:
    """One checkpoint of the wide model takes 18 MB: the second does not fit, and does when there is room."""
    job = built(job, tiny=WIDE)
    whole = at(job, "whole", toys)
    ranks.train("plain", whole, data)
    job = replace(at(job, "full", toys), folder=small_disk / "run")
    shutil.copytree(whole.folder / "tokenizer", job.folder / "tokenizer")
    with pytest.raises(TrainingError, match=r"cannot be written .*No space left.* it continues after step 2"):
        ranks.train("plain", job, data)
    assert [folder.name for folder in (job.folder / "checkpoints").iterdir()] == ["step_0000002"]
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    ranks.train("plain", job, data)
    assert_same_course(job, whole, 0, 0)


def test_a_checkpoint_that_cannot_be_written_ends_the_run_in_a_sentence_and_leaves_no_half_of_it(
    groups: dict[int, ranks.Ranks], job: WorkerJob, data: TrainingData, toys: ToyCorpus
) -> None:
    """Like a full disk, and without one: the process may not make files of 1 MB, which each part of one has."""
    job = built(job, tiny=WIDE)
    whole, full = at(job, "whole", toys), at(job, "full", toys)
    ranks.train("plain", whole, data)
    assert ranks.train("plain", full, data, 3) is None
    [said] = groups[1].run(ranks.train_with_files_up_to, 2**20, full, data)
    assert re.match(
        r"TrainingError: a checkpoint cannot be written .*File too large.* it continues after step 2$", said
    )
    assert [folder.name for folder in (full.folder / "checkpoints").iterdir()] == ["step_0000002"]
    ranks.train("plain", full, data)
    assert_same_course(full, whole, 0, 0)


def test_each_summary_of_progress_is_a_label_of_a_loss_that_is_logged(job: WorkerJob, toys: ToyCorpus) -> None:
    settings = ClipSettings(random_start_share=0, summaries=True, summary_share=1)
    dialogues = [with_progress(dialogue) for dialogue in toys.dialogues]
    cut = [clips_of(d, toys.vocabulary, TOY_CONTEXT, settings) for d in dialogues]
    clips = [clip for [clip] in cut]
    assert all(clip.closing_summary for clip in clips)
    tokens = {clip.id: len(toys.vocabulary.encode(clip.closing_summary or "")) + 1 for clip in clips}  # and the stop
    job = at(job, "summaries", toys, clips=settings, max_steps=2, stream_videos=0)
    ranks.train("plain", job, TrainingData(clips[:6], clips[6:]))
    events = [event for event, _ in read_events(job.folder / "metrics.jsonl")]
    steps = [event for event in events if event["kind"] == "step"]
    seen = clips_seen(job)
    assert [step["labels"]["summary_text"] for step in steps] == [sum(tokens[i] for i in seen[n]) for n in (0, 1)]
    assert all(step["parts"]["summary_text"] > 0 for step in steps)
    [validation] = [event for event in events if event["kind"] == "validation"]
    assert validation["losses"]["summary_text"] > 0


def test_a_lost_embedding_ends_the_run_on_all_ranks(
    groups: dict[int, ranks.Ranks], job: WorkerJob, data: TrainingData, toys: ToyCorpus
) -> None:
    Path(job.store, "v3.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"video 'v3' has no embedding in .*embeddings; run jobs/embed.py for it"):
        groups[2].run(ranks.train, "zero", job, data)


def test_a_mistake_that_one_rank_meets_ends_the_run_on_all(
    groups: dict[int, ranks.Ranks], job: WorkerJob, data: TrainingData, toys: ToyCorpus
) -> None:
    """So that it is no reason to try again: a folder that one node lacks, and a checkpoint of another model."""
    job = at(job, "alone", toys)
    lacks_base = built(job, base="/nowhere")
    sentences = groups[2].run(ranks.sentence_on, "zero", [job, lacks_base], data)
    assert sentences[0].startswith("`model.base` (/nowhere) is a missing folder")
    assert sentences == sentences[:1] * 2
    ranks.train("plain", built(job, tiny=WIDE), data, 3)
    [sentence, other] = groups[2].run(ranks.sentence_on, "zero", [job, job], data)
    assert sentence.endswith("is [256, 256] there and [256, 32] in the model")
    assert sentence == other


def test_early_stopping_keeps_the_best_weights(job: WorkerJob, data: TrainingData, toys: ToyCorpus) -> None:
    """A learning rate that is far too high: validation is at its best first.

    The run dies after weights that no checkpoint knows of, and a writer of better ones did too.
    """
    rule = EarlyStopping(metric="speak", patience=2)
    wild = {"early_stopping": rule, "learning_rate": 0.3, "warmup_steps": 0, "eval_every": 1, "max_steps": 60}
    job = at(job, "early", toys, **wild, stream_videos=1, stream_minutes=0.1)
    assert ranks.train("plain", job, data, 1) is None
    shutil.copytree(job.folder / "best" / "step_0000001", job.folder / "best" / "step_0000007.1234.partial")
    summary = ranks.train("plain", job, data)
    events = [event for event, _ in read_events(job.folder / "metrics.jsonl")]
    validations = [event for event in events if event["kind"] == "validation"]
    seen = {event["step"] + 1: {**event["losses"], **event["scores"]} for event in validations}
    best = min(seen, key=lambda step: seen[step]["speak"])
    assert summary is not None
    assert summary["step"] == max(seen) == best + 2
    assert summary["model_step"] == best
    [streamed] = [event for event in events if event["kind"] == "streaming"]
    assert streamed["step"] + 1 == best
    assert "stream_slot_accuracy" in streamed["scores"], "of the weights that are the model, once"
    assert not any("stream_slot_accuracy" in scores for scores in seen.values())
    assert summary["validation"] == {**seen[best], **streamed["scores"]}
    [stopped] = [event for event in events if event["kind"] == "stopped"]
    assert stopped["best_step"] == best
    [weights] = (job.folder / "best").iterdir()
    assert weights.name == f"step_{best:07}"
    kept = load_file(weights / "weights.safetensors")["dst_update_head.layers.0.weight"]
    model = load_model(job.folder / "model").model
    assert torch.equal(model.dst_update_head.layers[0].weight, kept)
    assert model.config.trained_steps == summary["trained_steps"] == dict.fromkeys(HEADS, best)
    assert ranks.train("plain", job, data) == summary, "what was stopped stays stopped"
    kinds = [event["kind"] for event, _ in read_events(job.folder / "metrics.jsonl")]
    assert kinds[len(events) :] == ["start", "done"]


def test_a_metric_without_labels_names_those_that_are_measured(
    job: WorkerJob, data: TrainingData, toys: ToyCorpus
) -> None:
    """An unknown metric is refused with the other settings, see test_mistakes.py."""
    job = at(job, "metric", toys, early_stopping=EarlyStopping(metric="summary_text"), eval_every=1)
    measured = "metric` .summary_text. is missing from validation, which measures loss, speaking_text, dst_text"
    with pytest.raises(TrainingError, match=measured):
        ranks.train("plain", job, data)
