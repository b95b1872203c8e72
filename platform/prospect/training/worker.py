"""What one training process does, from building the model to writing it.

Ray and DeepSpeed come in from zero.py, as functions and a backend.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer

from prospect.data.batches import Collator
from prospect.data.clips import Clip
from prospect.data.embeddings import EmbeddingStore
from prospect.dialogue.prompt import ContextSettings
from prospect.dialogue.vocabulary import Vocabulary
from prospect.errors import CheckpointError
from prospect.evaluation.metrics import EvaluationSettings
from prospect.files import write_json
from prospect.model.adapters import adapt, build_model
from prospect.model.checkpoint import save_model
from prospect.model.configuration import HEADS, ModelSettings
from prospect.model.modeling import DSTProActLlamaForCausalLM
from prospect.streaming.engine import StreamingSettings
from prospect.training.backend import Backend, together
from prospect.training.checkpoint import (
    newest_checkpoint,
    read_checkpoint,
    remove_old,
    step_folder,
    whole_checkpoints,
    write_checkpoint,
)
from prospect.training.loop import StepResult, make_sampler, train_steps
from prospect.training.meter import Meter
from prospect.training.plan import MemoryPlan
from prospect.training.preflight import full_device_told
from prospect.training.progress import EventLog
from prospect.training.settings import EarlyStopping, TrainingError, TrainingSettings
from prospect.training.validation import StreamingValidation, Validation, validate


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
    planned: MemoryPlan | None = None
    """Of one worker, where it was made."""
    streaming: StreamingSettings = field(default_factory=StreamingSettings)
    """Of the engine, in streaming validation; the thresholds are those of the decisions' scores too."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """How streaming validation is scored."""


@dataclass
class Progress:
    """What a checkpoint keeps besides weights and optimizer."""

    step: int = 0
    """Steps done; with the seed it says which clips come next and what is drawn for them."""
    first_loss: float = 0.0
    last_loss: float = 0.0
    trained_steps: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HEADS, 0))
    validation: dict[str, float] = field(default_factory=dict)
    """The latest of each loss and score."""
    best: dict[str, float] = field(default_factory=dict)
    """The validation that early stopping found best, and ..."""
    best_step: int = 0
    waited: int = 0
    """Validations since then."""
    stopped: bool = False

    def add(self, result: StepResult) -> None:
        if result.step == 0:
            self.first_loss = result.loss
        self.step, self.last_loss = result.step + 1, result.loss
        for head, trained in result.trained.items():
            self.trained_steps[head] += trained

    def judge(self, rule: EarlyStopping, measured: Mapping[str, float]) -> bool:
        """Whether the latest validation is the best so far; sets `stopped` when too many were not.

        Args:
            rule: what is best.
            measured: what that validation has measured.

        Raises:
            TrainingError: there is no such metric.
        """
        if rule.metric not in measured:
            known = ", ".join(measured) or "nothing, for want of a validation split"
            raise TrainingError(f"training.early_stopping.metric is {rule.metric!r}, but validation measures {known}")
        better = rule.improves(self.validation[rule.metric], self.best.get(rule.metric))
        if better:
            self.best, self.best_step, self.waited = dict(self.validation), self.step, 0
        else:
            self.waited += 1
        self.stopped = self.waited >= rule.patience
        return better


def enter(job: WorkerJob, data: Any) -> dict[str, Any]:
    """Where Ray Train enters a worker process, the only one that imports DeepSpeed."""
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    from prospect.training.zero import run

    return run(job, data)


def work(job: WorkerJob, data: TrainingData, make_backend: Callable[[nn.Module], Backend]) -> dict[str, Any]:
    """Trains from the start, or from the run's last whole checkpoint, and writes the model; in every process alike.

    Returns:
        `step`, `first_loss`, `last_loss`, `validation` and `trained_steps`.

    Raises:
        TrainingError: the loss is not finite, a clip has no embedding, a disk is full; on all ranks.
        OutOfMemoryError: on this rank.
        CheckpointError: the checkpoint belongs to another model.
    """
    with full_device_told(job.model, job.training, job.planned, lambda: "while the model was loaded"):
        worker = Work(job, data, make_backend)
    with full_device_told(job.model, job.training, job.planned, lambda: f"at step {worker.progress.step}"):
        return worker.run()


class Work:
    """A run as one process sees it."""

    def __init__(self, job: WorkerJob, data: TrainingData, make_backend: Callable[[nn.Module], Backend]) -> None:
        self.job, self.data, self.settings = job, data, job.training
        self.tokenizer = AutoTokenizer.from_pretrained(job.folder / "tokenizer")
        store = EmbeddingStore(job.store)
        self.wrapped = _model(job, data, self.tokenizer, store)
        self.backend = make_backend(self.wrapped)
        self.progress = Progress()
        self.checkpoints = job.folder / "checkpoints"
        self.log = EventLog(job.folder / "metrics.jsonl") if self.backend.rank == 0 else None
        sampler = make_sampler(data.train, self.settings)
        self.total = self.settings.total_steps(sampler)
        self.eval_every = self.settings.eval_every or sampler.steps_per_epoch
        vocabulary = Vocabulary(self.tokenizer)
        self.stream_every = self.settings.stream_every or self.total
        self.streaming = StreamingValidation(
            data.validation, store, vocabulary, job.context, job.streaming, job.evaluation, self.settings
        )
        self.collate, self.collate_all = (
            Collator(vocabulary, store.read, job.context, store.tokens_per_frame, sampling)
            for sampling in (self.settings.sampling, None)
        )

    def run(self) -> dict[str, Any]:
        self.progress = self._resume()
        self._event(
            "start",
            total_steps=self.total,
            workers=self.backend.world_size,
            gpu=self.backend.device.type != "cpu",
            clips=len(self.data.train),
            parameters=sum(math.prod(shape) for shape in self.backend.shapes().values()),
            pid=os.getpid(),
        )
        if not self.progress.stopped:
            self._train()
        return self._finish()

    def _resume(self) -> Progress:
        """Rank 0 says from which checkpoint: the ranks' views of a shared folder may differ for a moment."""
        newest = together(self.backend, self._newest() if self.backend.rank == 0 else None)
        [agreed] = self.backend.gather([newest] if self.backend.rank == 0 else [])
        return Progress(**read_checkpoint(self.backend, agreed)) if agreed else Progress()

    def _newest(self) -> Path | CheckpointError | None:
        try:
            newest, passed_over = newest_checkpoint(self.checkpoints)
        except CheckpointError as error:
            return error
        if self.log:
            for sentence in passed_over:
                self.log.write("warning", step=0, message=f"{sentence}; training goes on from an older one")
        return newest

    def _train(self) -> None:
        settings, progress = self.settings, self.progress
        meter = Meter(self.backend.device.type == "cuda")
        for result in train_steps(self.backend, self.data.train, self.collate, settings, start=progress.step):
            progress.add(result)
            last = progress.step == self.total
            if self.log:
                self.log.write("step", **vars(result), **meter.step(), system=meter.system())
            self._validate(last)
            if last or progress.stopped or progress.step % settings.save_every == 0:
                self._save()
            if progress.stopped:
                self._event("stopped", best_step=progress.best_step)
                return
            meter.resume()

    def _validate(self, last: bool) -> None:
        """What is due after this step: losses and scores over all clips, scores of streaming, or both."""
        passes = last or self.progress.step % self.eval_every == 0
        streams = self.streaming.wanted and (last or self.progress.step % self.stream_every == 0)
        if not self.data.validation or not (passes or streams):
            return
        found = Validation()
        if passes:
            data, streaming = self.data.validation, self.job.streaming
            found = validate(self.backend, data, self.collate_all, self.settings, streaming)
        scores = found.scores | (self.streaming.scores(self.backend) if streams else {})
        if self.log:
            self.log.write("validation", step=self.progress.step - 1, losses=found.losses, scores=scores)
        self.progress.validation |= {**found.losses, **scores}
        rule = self.settings.early_stopping
        kept = passes
        if rule:
            kept = (streams if rule.streamed else passes) and self.progress.judge(rule, {**found.losses, **scores})
            if kept:
                self._write(self.job.folder / "best", moments=False)
        if kept and found.curves:
            together(self.backend, self._write_curves(found.curves) if self.backend.rank == 0 else None)

    def _write_curves(self, heads: dict[str, Any]) -> TrainingError | None:
        """Of the weights that the model would have if this were the end."""
        try:
            write_json(self.job.folder / "curves.json", {"step": self.progress.step, "heads": heads})
        except OSError as error:
            return self._unwritten("curves.json", self.job.folder, error)
        return None

    def _save(self) -> None:
        began, folder = time.monotonic(), step_folder(self.checkpoints, self.progress.step)
        self._write(folder)
        if self.backend.rank == 0:
            remove_old(self.checkpoints, self.settings.keep_checkpoints)
        self._event("checkpoint", folder=str(folder), seconds=time.monotonic() - began)

    def _write(self, folder: Path, moments: bool = True) -> None:
        failure = write_checkpoint(self.backend, folder, vars(self.progress), moments=moments)
        together(self.backend, failure and self._unwritten("a checkpoint", folder, failure))

    def _unwritten(self, what: str, folder: Path, failure: Exception) -> TrainingError:
        kept = whole_checkpoints(self.checkpoints)
        resume = f"continues after step {int(kept[-1].name[5:])}" if kept else "begins anew"
        return TrainingError(
            f"{what} cannot be written to {folder} ({failure}); make room there and start the run again: it {resume}"
        )

    def _finish(self) -> dict[str, Any]:
        progress = self.progress
        if progress.best and progress.best_step < progress.step:
            read_checkpoint(self.backend, self.job.folder / "best")
            progress.validation = progress.best
        names = ("step", "first_loss", "last_loss", "validation", "trained_steps")
        summary = {name: getattr(progress, name) for name in names}
        weights = self.backend.state_dict()
        together(self.backend, self._write_model(summary, weights) if self.backend.rank == 0 else None)
        self._event("done")
        return summary

    def _write_model(self, summary: dict[str, Any], weights: dict[str, Tensor] | None) -> TrainingError | None:
        job = self.job
        self.backend.model.config.trained_steps = dict(self.progress.trained_steps)
        extra = {**job.manifest, "training": summary}
        try:
            save_model(self.wrapped, self.tokenizer, job.model, job.folder / "model", extra, weights)
        except (OSError, SafetensorError) as error:
            return self._unwritten("the model", job.folder / "model", error)
        return None

    def _event(self, kind: str, **numbers: Any) -> None:
        if self.log:
            self.log.write(kind, step=self.progress.step, **numbers)


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
