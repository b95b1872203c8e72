"""A training run in one worker process: build or restore the model, train, validate, checkpoint, write it.

Knows neither Ray nor DeepSpeed: the caller brings a backend and the process group.
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
from prospect.training.backend import ProcessGroup, SingleProcess, TrainingBackend, raise_on_all_ranks
from prospect.training.checkpoint import (
    find_mismatch,
    newest_checkpoint,
    read_checkpoint,
    read_progress,
    remove_old,
    remove_others,
    step_folder,
    step_of,
    whole_checkpoints,
    write_checkpoint,
    write_progress,
)
from prospect.training.events import EventLog
from prospect.training.loop import StepResult, make_sampler, step_batches, train_step
from prospect.training.meter import Meter
from prospect.training.preflight import explain_oom
from prospect.training.settings import STREAM_PREFIX, TrainingError
from prospect.training.train_state import TrainState
from prospect.training.validation import Validation, validate
from prospect.training.worker_spec import TrainingData, WorkerJob, build_parts

MakeBackend = Callable[[nn.Module], TrainingBackend]
"""Wraps a model for training; called on all ranks at once."""


class TrainingRun:
    """A training run as one worker process sees it; every rank makes the same calls.

    Args:
        job: what to train.
        data: the clips.
        make_backend: wraps the model for training.
        group: the ranks, which agree that each of them has a model before there is a backend; default: one process.

    Raises:
        TrainingError: the base model cannot be loaded; on all ranks.
        OutOfMemoryError: the model does not fit; on this rank.
    """

    def __init__(
        self, job: WorkerJob, data: TrainingData, make_backend: MakeBackend, group: ProcessGroup | None = None
    ) -> None:
        self.job, self.data, self.settings = job, data, job.training
        with explain_oom(job.model, job.training, job.planned, lambda: "while the model was loaded"):
            parts = raise_on_all_ranks(group or SingleProcess(), build_parts(job, data))
            self.backend = make_backend(parts.model)
        self.tokenizer, self.wrapped, self.streaming = parts.tokenizer, parts.model, parts.streaming
        self.collate, self.collate_reading, self.collate_all = parts.collate, parts.collate_reading, parts.collate_all
        self.state = TrainState()
        self.saved = 0
        """The step of the newest checkpoint."""
        self.checkpoints, self.best = job.folder / "checkpoints", job.folder / "best"
        self.log = EventLog(job.folder / "metrics.jsonl") if self.backend.rank == 0 else None
        sampler = make_sampler(data.train, self.settings)
        self.total = self.settings.total_steps(sampler)
        self.eval_every = self.settings.eval_every or sampler.steps_per_epoch

    def run(self) -> dict[str, Any]:
        """Train from the newest whole checkpoint, or from the start, and write the model.

        Returns:
            `step`, `first_loss` and `last_loss` of the run; `model_step`, `validation` and `trained_steps` of the
            model.

        Raises:
            TrainingError: the checkpoint belongs to another model, the loss is not finite, a clip has no embedding,
                a disk is full; on all ranks.
            OutOfMemoryError: on this rank.
        """
        job, backend = self.job, self.backend
        with explain_oom(job.model, job.training, job.planned, lambda: f"at step {self.state.step}"):
            self._resume()
            self._event(
                "start",
                total_steps=self.total,
                workers=backend.world_size,
                gpu=backend.device.type != "cpu",
                clips=len(self.data.train),
                parameters=sum(math.prod(shape) for shape in backend.shapes().values()),
                pids=backend.gather([os.getpid()]),
            )
            self._validate()  # what was due at the checkpoint, and could not be done
            meter, start = Meter(backend.device.type == "cuda"), self.total if self.state.stopped else self.state.step
            batches = step_batches(
                backend, self.data.train, self.collate, self.settings, start=start, collate_reading=self.collate_reading
            )
            for batch in batches:
                self._after_step(train_step(backend, batch, self.settings.at(batch.step, self.total)), meter)
                if self.state.stopped:
                    break
            return self._finish()

    def _resume(self) -> None:
        """Restore the checkpoint that rank 0 chooses: the ranks' views of a shared folder may differ for a moment."""
        newest = raise_on_all_ranks(self.backend, self._newest() if self.backend.rank == 0 else None)
        [agreed] = self.backend.gather([newest] if self.backend.rank == 0 else [])
        if agreed:
            self.state = self._restore(agreed)
            self.saved = self.state.step

    def _newest(self) -> Path | CheckpointError | None:
        try:
            newest, passed_over = newest_checkpoint(self.checkpoints)
        except CheckpointError as error:
            return error
        if self.log:
            for sentence in passed_over:
                self.log.write("warning", step=0, message=f"{sentence}; training continues from an older one")
        return newest

    def _restore(self, folder: Path) -> TrainState:
        """Read a checkpoint once every rank finds that it fits the model."""
        raise_on_all_ranks(self.backend, find_mismatch(self.backend, folder))
        return TrainState(**read_checkpoint(self.backend, folder))

    def _after_step(self, result: StepResult, meter: Meter) -> None:
        """Note, save and validate as the settings ask for it after this step."""
        self.state.add_step(result)
        if self.log:
            self.log.write("step", **vars(result), **meter.step(), system=meter.system())
        if self.state.step == self.total or self.state.step % self.settings.save_every == 0:
            self._save()  # before the validation, which may fail
        self._validate()
        meter.resume()

    def _due(self) -> tuple[bool, bool]:
        """Whether a pass over the validation clips is due after this step, and whether streaming validation is."""
        step, rule = self.state.step, self.settings.early_stopping
        if not self.data.validation or step == self.state.validated:
            return False, False
        last = step == self.total
        every = self.settings.stream_every
        # With early stopping the last weights need not be the model's: `_stream_best` streams those that are.
        streams = (every and step % every == 0) or (last and (rule is None or rule.streamed))
        return last or step % self.eval_every == 0, bool(streams) and self.streaming.wanted

    def _validate(self) -> None:
        """Run the validations that are due after this step, and apply early stopping."""
        state, (passes, streams) = self.state, self._due()
        if not (passes or streams):
            return
        found = Validation()
        if passes:
            data, streaming = self.data.validation, self.job.streaming
            found = validate(self.backend, data, self.collate_all, self.settings, streaming)
        scores = found.scores | (self.streaming.scores(self.backend) if streams else {})
        if self.log:
            self.log.write("validation", step=state.step - 1, losses=found.losses, scores=scores)
        state.validation, state.validated = {**found.losses, **scores}, state.step
        rule = self.settings.early_stopping
        kept = passes
        if rule:
            kept = (streams if rule.streamed else passes) and state.check_early_stopping(rule)
            if kept:
                self._write(step_folder(self.best, state.step), moments=False)
        if kept and found.curves:
            raise_on_all_ranks(self.backend, self._write_curves(found.curves) if self.backend.rank == 0 else None)
        if state.stopped:
            self._event("stopped", best_step=state.best_step)
        self._keep_state()

    def _keep_state(self) -> None:
        """Write the run's state into this step's checkpoint; a run that stops here gets a checkpoint for it."""
        folder = step_folder(self.checkpoints, self.state.step)
        if self.saved == self.state.step:
            failure = write_progress(folder, vars(self.state)) if self.backend.rank == 0 else None
            raise_on_all_ranks(self.backend, failure and self._write_error("a checkpoint", folder, failure))
        elif self.state.stopped:
            self._save()
        self._remove_old()

    def _write_curves(self, heads: dict[str, Any]) -> TrainingError | None:
        """Write precision-recall curves of the weights that would be the model's if the run ended here."""
        try:
            write_json(self.job.folder / "curves.json", {"step": self.state.step, "heads": heads})
        except OSError as error:
            return self._write_error("curves.json", self.job.folder, error)
        return None

    def _save(self) -> None:
        began, folder = time.monotonic(), step_folder(self.checkpoints, self.state.step)
        self._write(folder)
        self.saved = self.state.step
        self._remove_old()
        self._event("checkpoint", folder=str(folder), seconds=time.monotonic() - began)

    def _remove_old(self) -> None:
        """Delete old checkpoints, and best weights that no remaining checkpoint refers to."""
        if self.backend.rank:
            return
        remove_old(self.checkpoints, self.settings.keep_checkpoints)
        left = [read_progress(folder) for folder in whole_checkpoints(self.checkpoints)]
        remove_others(self.best, {self.state.best_step, *(progress["best_step"] for progress in left)})

    def _write(self, folder: Path, moments: bool = True) -> None:
        failure = write_checkpoint(self.backend, folder, vars(self.state), moments=moments)
        raise_on_all_ranks(self.backend, failure and self._write_error("a checkpoint", folder, failure))

    def _write_error(self, what: str, folder: Path, failure: Exception) -> TrainingError:
        kept = whole_checkpoints(self.checkpoints)
        resume = f"continues after step {step_of(kept[-1])}" if kept else "starts over"
        return TrainingError(
            f"{what} cannot be written to {folder} ({failure}); make room there and start the run again: it {resume}"
        )

    def _finish(self) -> dict[str, Any]:
        state, trained_steps = self.state, self.state.trained_steps
        if state.model_step < state.step:
            trained_steps = self._restore(step_folder(self.best, state.best_step)).trained_steps
        if state.best:
            self._stream_best()
        summary = {
            "step": state.step,
            "first_loss": state.first_loss,
            "last_loss": state.last_loss,
            "model_step": state.model_step,
            "validation": state.model_validation,
            "trained_steps": trained_steps,
        }
        weights = self.backend.state_dict()
        raise_on_all_ranks(self.backend, self._write_model(summary, weights) if self.backend.rank == 0 else None)
        self._event("done", model_step=state.model_step, validation=state.model_validation)
        return summary

    def _stream_best(self) -> None:
        """Stream the best weights, which are in place now, unless they were streamed when they were found."""
        state = self.state
        if not self.streaming.wanted or any(name.startswith(STREAM_PREFIX) for name in state.best):
            return
        scores = self.streaming.scores(self.backend)
        if self.log:
            self.log.write("streaming", step=state.best_step - 1, scores=scores)
        state.best |= scores
        self._keep_state()

    def _write_model(self, summary: dict[str, Any], weights: dict[str, Tensor] | None) -> TrainingError | None:
        job = self.job
        self.backend.model.config.trained_steps = dict(summary["trained_steps"])
        extra = {**job.manifest, "training": summary}
        try:
            save_model(self.wrapped, self.tokenizer, job.model, job.folder / "model", extra, weights)
        except (OSError, SafetensorError) as error:
            return self._write_error("the model", job.folder / "model", error)
        return None

    def _event(self, kind: str, **numbers: Any) -> None:
        if self.log:
            self.log.write(kind, step=self.state.step, **numbers)
