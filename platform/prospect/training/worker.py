"""What one training process does, from building the model to writing it.

Ray and DeepSpeed come in from zero.py, as functions and a backend.
"""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from prospect.errors import CheckpointError
from prospect.files import write_json
from prospect.model.checkpoint import save_model
from prospect.training.backend import Alone, Backend, Group, raise_on_all_ranks
from prospect.training.checkpoint import (
    newest_checkpoint,
    read_checkpoint,
    read_progress,
    remove_old,
    remove_others,
    step_folder,
    step_of,
    unfit,
    whole_checkpoints,
    write_checkpoint,
    write_progress,
)
from prospect.training.events import EventLog
from prospect.training.loop import make_sampler, train_steps
from prospect.training.meter import Meter
from prospect.training.preflight import explain_oom
from prospect.training.settings import STREAMED, TrainingError
from prospect.training.train_state import Progress
from prospect.training.validation import Validation, validate
from prospect.training.worker_spec import TrainingData, WorkerJob, prepare


def work(
    job: WorkerJob, data: TrainingData, make_backend: Callable[[nn.Module], Backend], group: Group | None = None
) -> dict[str, Any]:
    """Trains from the start, or from the run's last whole checkpoint, and writes the model; in every process alike.

    Args:
        job: what to do.
        data: the clips.
        make_backend: around the model; on all ranks at once.
        group: the ranks, which agree that each of them has a model before there is a backend.

    Returns:
        `step`, `first_loss` and `last_loss` of the run; `model_step`, `validation` and `trained_steps` of the model.

    Raises:
        TrainingError: the base model cannot be loaded, the checkpoint belongs to another model, the loss is not
            finite, a clip has no embedding, a disk is full; on all ranks.
        OutOfMemoryError: on this rank.
    """
    with explain_oom(job.model, job.training, job.planned, lambda: "while the model was loaded"):
        run = TrainingRun(job, data, make_backend, group or Alone())
    with explain_oom(job.model, job.training, job.planned, lambda: f"at step {run.progress.step}"):
        return run.run()


class TrainingRun:
    """A run as one process sees it."""

    def __init__(
        self, job: WorkerJob, data: TrainingData, make_backend: Callable[[nn.Module], Backend], group: Group
    ) -> None:
        self.job, self.data, self.settings = job, data, job.training
        made = raise_on_all_ranks(group, prepare(job, data))
        self.tokenizer, self.wrapped, self.streaming = made.tokenizer, made.model, made.streaming
        self.collate, self.collate_all = made.collate, made.collate_all
        self.backend = make_backend(self.wrapped)
        self.progress = Progress()
        self.saved = 0
        """The step of the newest checkpoint."""
        self.checkpoints, self.best = job.folder / "checkpoints", job.folder / "best"
        self.log = EventLog(job.folder / "metrics.jsonl") if self.backend.rank == 0 else None
        sampler = make_sampler(data.train, self.settings)
        self.total = self.settings.total_steps(sampler)
        self.eval_every = self.settings.eval_every or sampler.steps_per_epoch

    def run(self) -> dict[str, Any]:
        self._resume()
        self._event(
            "start",
            total_steps=self.total,
            workers=self.backend.world_size,
            gpu=self.backend.device.type != "cpu",
            clips=len(self.data.train),
            parameters=sum(math.prod(shape) for shape in self.backend.shapes().values()),
            pids=self.backend.gather([os.getpid()]),
        )
        self._train()
        return self._finish()

    def _resume(self) -> None:
        """Rank 0 says from which checkpoint: the ranks' views of a shared folder may differ for a moment."""
        newest = raise_on_all_ranks(self.backend, self._newest() if self.backend.rank == 0 else None)
        [agreed] = self.backend.gather([newest] if self.backend.rank == 0 else [])
        if agreed:
            self.progress = self._restore(agreed)
            self.saved = self.progress.step

    def _newest(self) -> Path | CheckpointError | None:
        try:
            newest, passed_over = newest_checkpoint(self.checkpoints)
        except CheckpointError as error:
            return error
        if self.log:
            for sentence in passed_over:
                self.log.write("warning", step=0, message=f"{sentence}; training goes on from an older one")
        return newest

    def _restore(self, folder: Path) -> Progress:
        """A checkpoint that all ranks can read."""
        raise_on_all_ranks(self.backend, unfit(self.backend, folder))
        return Progress(**read_checkpoint(self.backend, folder))

    def _train(self) -> None:
        self._validate()  # what was due at the checkpoint, and could not be done
        if self.progress.stopped:
            return
        settings, progress = self.settings, self.progress
        meter = Meter(self.backend.device.type == "cuda")
        for result in train_steps(self.backend, self.data.train, self.collate, settings, start=progress.step):
            progress.add(result)
            if self.log:
                self.log.write("step", **vars(result), **meter.step(), system=meter.system())
            if progress.step == self.total or progress.step % settings.save_every == 0:
                self._save()  # before the validation, which may fail
            self._validate()
            if progress.stopped:
                return
            meter.resume()

    def _due(self) -> tuple[bool, bool]:
        """Whether there is to be a pass over all clips after this step, and whether streaming."""
        step, rule = self.progress.step, self.settings.early_stopping
        if not self.data.validation or step == self.progress.validated:
            return False, False
        last = step == self.total
        every = self.settings.stream_every
        # Where the last weights need not be the model, those that are will be streamed.
        streams = (every and step % every == 0) or (last and (rule is None or rule.streamed))
        return last or step % self.eval_every == 0, bool(streams) and self.streaming.wanted

    def _validate(self) -> None:
        """What is due after this step: losses and scores over all clips, scores of streaming, or both."""
        progress, (passes, streams) = self.progress, self._due()
        if not (passes or streams):
            return
        found = Validation()
        if passes:
            data, streaming = self.data.validation, self.job.streaming
            found = validate(self.backend, data, self.collate_all, self.settings, streaming)
        scores = found.scores | (self.streaming.scores(self.backend) if streams else {})
        if self.log:
            self.log.write("validation", step=progress.step - 1, losses=found.losses, scores=scores)
        progress.validation, progress.validated = {**found.losses, **scores}, progress.step
        rule = self.settings.early_stopping
        kept = passes
        if rule:
            kept = (streams if rule.streamed else passes) and progress.judge(rule)
            if kept:
                self._write(step_folder(self.best, progress.step), moments=False)
        if kept and found.curves:
            raise_on_all_ranks(self.backend, self._write_curves(found.curves) if self.backend.rank == 0 else None)
        if progress.stopped:
            self._event("stopped", best_step=progress.best_step)
        self._keep_progress()

    def _keep_progress(self) -> None:
        """In the checkpoint of this step, if there is one; a run that stops here gets one."""
        folder = step_folder(self.checkpoints, self.progress.step)
        if self.saved == self.progress.step:
            failure = write_progress(folder, vars(self.progress)) if self.backend.rank == 0 else None
            raise_on_all_ranks(self.backend, failure and self._unwritten("a checkpoint", folder, failure))
        elif self.progress.stopped:
            self._save()
        self._remove_old()

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
        self.saved = self.progress.step
        self._remove_old()
        self._event("checkpoint", folder=str(folder), seconds=time.monotonic() - began)

    def _remove_old(self) -> None:
        """Checkpoints, and best weights that none of those left means: a run that goes on from any finds its own."""
        if self.backend.rank:
            return
        remove_old(self.checkpoints, self.settings.keep_checkpoints)
        left = [read_progress(folder) for folder in whole_checkpoints(self.checkpoints)]
        remove_others(self.best, {self.progress.best_step, *(progress["best_step"] for progress in left)})

    def _write(self, folder: Path, moments: bool = True) -> None:
        failure = write_checkpoint(self.backend, folder, vars(self.progress), moments=moments)
        raise_on_all_ranks(self.backend, failure and self._unwritten("a checkpoint", folder, failure))

    def _unwritten(self, what: str, folder: Path, failure: Exception) -> TrainingError:
        kept = whole_checkpoints(self.checkpoints)
        resume = f"continues after step {step_of(kept[-1])}" if kept else "begins anew"
        return TrainingError(
            f"{what} cannot be written to {folder} ({failure}); make room there and start the run again: it {resume}"
        )

    def _finish(self) -> dict[str, Any]:
        progress, model = self.progress, self.progress
        if progress.model_step < progress.step:
            model = self._restore(step_folder(self.best, progress.best_step))
        if progress.best:
            self._stream_best()
        summary = {
            "step": progress.step,
            "first_loss": progress.first_loss,
            "last_loss": progress.last_loss,
            "model_step": progress.model_step,
            "validation": progress.of_model,
            "trained_steps": model.trained_steps,
        }
        weights = self.backend.state_dict()
        raise_on_all_ranks(self.backend, self._write_model(summary, weights) if self.backend.rank == 0 else None)
        self._event("done", model_step=progress.model_step, validation=progress.of_model)
        return summary

    def _stream_best(self) -> None:
        """The best weights, which are in place, unless they were streamed when they were found."""
        progress = self.progress
        if not self.streaming.wanted or any(name.startswith(STREAMED) for name in progress.best):
            return
        scores = self.streaming.scores(self.backend)
        if self.log:
            self.log.write("streaming", step=progress.best_step - 1, scores=scores)
        progress.best |= scores
        self._keep_progress()

    def _write_model(self, summary: dict[str, Any], weights: dict[str, Tensor] | None) -> TrainingError | None:
        job = self.job
        self.backend.model.config.trained_steps = dict(summary["trained_steps"])
        extra = {**job.manifest, "training": summary}
        try:
            save_model(self.wrapped, self.tokenizer, job.model, job.folder / "model", extra, weights)
        except (OSError, SafetensorError) as error:
            return self._unwritten("the model", job.folder / "model", error)
        return None

    def _event(self, kind: str, **numbers: Any) -> None:
        if self.log:
            self.log.write(kind, step=self.progress.step, **numbers)
