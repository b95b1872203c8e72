"""What one training process does, from building the model to writing it.

Ray and DeepSpeed come in from zero.py, as functions and a backend.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoTokenizer

from prospect.data.batches import Collator
from prospect.data.clips import Clip
from prospect.data.embeddings import EmbeddingStore
from prospect.dialogue.prompt import ContextSettings
from prospect.dialogue.vocabulary import Vocabulary
from prospect.model.adapters import adapt, build_model, trainable_parameters
from prospect.model.checkpoint import save_model
from prospect.model.configuration import HEADS, ModelSettings
from prospect.model.modeling import DSTProActLlamaForCausalLM
from prospect.training.loop import Backend, StepResult, TrainingSettings, make_sampler, train_steps, validation_loss
from prospect.training.progress import EventLog


@dataclass(frozen=True)
class TrainingData:
    """The clips, and with `whiten_frames` mean [D] and whitening [D, D] of the training frames."""

    train: Sequence[Clip]
    validation: Sequence[Clip]
    frame_statistics: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class WorkerJob:
    """Everything that a worker is told; folders are readable and writable on every node."""

    model: ModelSettings
    training: TrainingSettings
    context: ContextSettings
    folder: Path
    """The run's: tokenizer, metrics and the finished model."""
    cache: Path
    """Of converted packaged bases."""
    store: str
    """Root of the embedding store."""
    manifest: dict[str, Any]
    """Travels with the model."""


@dataclass
class Progress:
    """What a checkpoint keeps besides weights and optimizer."""

    step: int = 0
    """Steps done."""
    first_loss: float = 0.0
    last_loss: float = 0.0
    trained_steps: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HEADS, 0))

    def add(self, result: StepResult) -> None:
        if result.step == 0:
            self.first_loss = result.loss
        self.step, self.last_loss = result.step + 1, result.loss
        for head, trained in result.trained.items():
            self.trained_steps[head] += trained


class CheckpointingBackend(Backend, Protocol):
    """A backend that can be stopped and continued."""

    def save(self, folder: Path, progress: dict[str, Any]) -> None: ...

    def load(self, folder: Path) -> tuple[dict[str, Any], bool]: ...


SaveCheckpoint = Callable[[int, Callable[[Path], None]], None]
"""(step, write): has every rank `write` its part into a folder and keeps it as the checkpoint of `step`."""


def enter(job: WorkerJob, data: Any) -> dict[str, Any]:
    """Where Ray Train enters a worker process, the only one that imports DeepSpeed."""
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    from prospect.training.zero import run

    return run(job, data)


def work(
    job: WorkerJob,
    data: TrainingData,
    make_backend: Callable[[nn.Module], CheckpointingBackend],
    restore: Path | None,
    save: SaveCheckpoint,
) -> dict[str, Any]:
    """Trains from the start, or from the checkpoint in `restore`, and writes the model; in every process alike.

    Returns:
        `steps`, `first_loss`, `last_loss`, `validation` and `trained_steps`.

    Raises:
        TrainingError: a loss that is not finite, on all ranks.
    """
    settings = job.training
    tokenizer = AutoTokenizer.from_pretrained(job.folder / "tokenizer")
    store = EmbeddingStore(job.store)
    model = _model(job, data, tokenizer, store)
    backend = make_backend(model)
    progress, whole = Progress(), True
    if restore is not None:
        saved, whole = backend.load(restore)
        progress = Progress(**saved)
    log = EventLog(job.folder / "metrics.jsonl") if backend.rank == 0 else None
    sampler = make_sampler(data.train, settings)
    total = settings.total_steps(sampler)
    vocabulary = Vocabulary(tokenizer)
    collate, collate_all = (
        Collator(vocabulary, store.read, job.context, store.tokens_per_frame, sampling)
        for sampling in (settings.sampling, None)
    )

    def validate() -> dict[str, float]:
        losses = validation_loss(backend, data.validation, collate_all, settings) if data.validation else {}
        if log and losses:
            log.write("validation", step=progress.step - 1, losses=losses)
        return losses

    if log:
        log.write(
            "start",
            step=progress.step,
            total_steps=total,
            workers=backend.world_size,
            gpu=backend.device.type != "cpu",
            clips=len(data.train),
            parameters=sum(parameter.numel() for parameter in trainable_parameters(model).values()),
            optimizer_restored=whole,
            pid=os.getpid(),
        )
    for result in train_steps(backend, data.train, collate, settings, start=progress.step):
        progress.add(result)
        last = progress.step == total
        if log:
            log.write("step", **vars(result))
        if not last and progress.step % (settings.eval_every or sampler.steps_per_epoch) == 0:
            validate()
        if last or progress.step % settings.save_every == 0:
            save(progress.step, lambda folder: backend.save(folder, vars(progress)))
            if log:
                log.write("checkpoint", step=progress.step)
    summary = {**vars(progress), "validation": validate()}
    if log:
        backend.model.config.trained_steps = dict(progress.trained_steps)
        extra = {**job.manifest, "training": summary}
        save_model(model, tokenizer, job.model, job.folder / "model", extra)
        log.write("done", step=progress.step)
    return summary


def _model(
    job: WorkerJob, data: TrainingData, tokenizer: Any, store: EmbeddingStore
) -> DSTProActLlamaForCausalLM | PeftModel:
    """The same on every rank."""
    model = build_model(
        job.model,
        tokenizer,
        vision_dim=store.dim,
        tokens_per_frame=store.tokens_per_frame,
        fingerprint=store.fingerprint,
        cache=job.cache,
        seed=job.training.seed,
    )
    if data.frame_statistics is not None:
        model.mm_projector.fix_whitening(*data.frame_statistics)
    return adapt(model, job.model)
