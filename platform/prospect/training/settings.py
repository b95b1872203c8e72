"""Settings of training, names of its metrics, and its errors. Imports no torch."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from prospect.data.settings import ClipSettings, LabelSamplingSettings
from prospect.errors import ProspectError
from prospect.evaluation.settings import CalibrationSettings
from prospect.messages import unknown
from prospect.model.settings import LOSS_PARTS, LossSettings
from prospect.settings import Settings
from prospect.training.sampler import ClipSampler

OPERATIONAL = {
    "run_name", "num_workers", "threads_per_worker", "min_workers", "zero_stage", "offload_optimizer", "max_failures",
    "micro_batch_size", "micro_batch_tokens", "activation_checkpointing", "log_every", "save_every",
    "keep_checkpoints", "eval_every", "stream_every", "stream_videos", "stream_minutes", "calibration",
}  # fmt: skip
"""Settings that may change when a run is continued: they change its losses by rounding at most."""

STREAM_PREFIX = "stream_"
"""Prefix of streaming validation's scores."""
STREAM_SCORES = (
    "turn_f1", "turn_precision", "turn_recall", "dst_f1", "joint_goal_accuracy", "readout_joint_goal_accuracy",
    "slot_accuracy", "utterances_per_minute",
)  # fmt: skip
"""Metrics of an evaluation that streaming validation reports."""
HEAD_SCORES = ("precision", "recall", "f1", "average_precision", "best_f1", "best_threshold")
"""Scores of each decision head, with the reference's events in the context."""
VALIDATION_METRICS = (
    "loss", *LOSS_PARTS, *(f"{head}_{score}" for head in ("speak", "update") for score in HEAD_SCORES),
    "state_accuracy", "state_macro_f1", *(f"{STREAM_PREFIX}{score}" for score in STREAM_SCORES),
)  # fmt: skip
"""Everything that validation may measure; what has no labels is left out."""


class TrainingError(ProspectError):
    """Training cannot continue: the loss is not finite, or the workers failed more often than allowed."""

    code = "training_failed"


class OutOfMemoryError(TrainingError):
    """The device ran out of memory. The only training error that may be raised on one rank only."""


class EarlyStopping(Settings):
    """Ends a run when validation gets no better; the model is then the one of the best validation."""

    metric: str = "loss"
    """Of the validation: `loss`, the name of a part of it, or the name of a score: `speak_f1`, `update_f1`,
    `state_accuracy`, ..., and of streaming `stream_turn_f1`, `stream_joint_goal_accuracy`, ...."""
    mode: Literal["min", "max"] = "min"
    """Whether lower or higher is better."""
    patience: int = Field(default=3, ge=1)
    """Validations in a row without a better one."""
    min_delta: float = Field(default=0.0, ge=0)
    """By how much a value has to be better."""

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in VALIDATION_METRICS:
            raise ValueError(unknown("metric", metric, VALIDATION_METRICS))
        return metric

    @property
    def streamed(self) -> bool:
        """Whether it takes streaming to measure it."""
        return self.metric.startswith(STREAM_PREFIX)

    def improves(self, value: float, best: float | None) -> bool:
        gain = 0.0 if best is None else (best - value if self.mode == "min" else value - best)
        return best is None or gain > self.min_delta


class ReadingSettings(Settings):
    """The last steps of a model that is trained from scratch: it can watch by then, and learns to read its context.

    A pretrained model can read, and needs none of it.
    """

    share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the optimizer steps, the last ones, in which the other values here take the place of those named."""
    lookup: float = Field(default=1.0, ge=0)
    """In place of `losses.lookup`."""
    speaking_text: float = Field(default=3.0, ge=0)
    """In place of `losses.speaking_text`."""
    watch_only_share: float = Field(default=0.1, ge=0, lt=1)
    """In place of `sampling.watch_only_share`: what is watched needs fewer clips by then."""


class TrainingSettings(Settings):
    """How a model is fitted. `run_name` is the run's identity: the same name again continues it."""

    run_name: str = Field(default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Names the run's folder under storage.root and its MLflow run."""
    num_workers: int = Field(default=1, ge=1)
    """Processes, one a GPU where there are GPUs."""
    threads_per_worker: int | None = Field(default=None, ge=1)
    """CPU threads of a worker, and as many CPUs that Ray sets aside for it. Default: its node's cores, shared with
    the other workers there; set it where several runs share a machine, as threads that wait for each other are slow."""
    min_workers: int | None = Field(default=None, ge=1)
    """Elastic: start, and continue after a loss, with as few as this many workers, and grow back to num_workers as
    nodes come. Default: wait for num_workers."""
    zero_stage: Literal[1, 2, 3] = 2
    """DeepSpeed ZeRO: 1 partitions the optimizer's state over the workers, 2 the gradients too, 3 the weights too."""
    offload_optimizer: bool = False
    """Keep the optimizer's state and its updates in the machine's memory instead of the GPU's."""
    max_failures: int = Field(default=2, ge=0)
    """How many times dead workers are restarted from the last checkpoint."""
    epochs: int = Field(default=10, ge=1)
    """Passes over the training clips, where `max_steps` is not set."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps; instead of `epochs`."""
    batch_size: int = Field(default=16, ge=1)
    """Clips of one optimizer step, over all workers."""
    micro_batch_size: int = Field(default=4, ge=1)
    """Clips that one worker computes at once, packed into one row; the rest is accumulated."""
    micro_batch_tokens: int | None = Field(default=None, ge=64)
    """Instead of `micro_batch_size`: tokens that one worker computes at once, as many clips as fit. The batch stays
    in clips, so that this changes memory and speed and not the loss."""
    activation_checkpointing: bool = False
    """Keep one hidden state a layer and compute the layer again in the backward pass: a third more work, and
    memory for one layer's activations instead of all."""
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak of the schedule; lower it where the loss rises or jumps."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """From the end of the warm-up to the last step the learning rate falls to 0, as a cosine or a line, or stays."""
    warmup_steps: int = Field(default=20, ge=0)
    """Optimizer steps in which the learning rate rises from 0 to its peak; fewer than the run has."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of weight matrices; biases and norms have none."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Norm to which larger gradients are scaled down; lower it where single batches throw the run off."""
    seed: int = 0
    """Of the new parts' initial weights, the order of clips and dropout."""
    log_every: int = Field(default=10, ge=1)
    """Steps between two progress lines."""
    save_every: int = Field(default=200, ge=1)
    """Steps between two checkpoints; the last step is always saved."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints that stay on disk."""
    eval_every: int | None = Field(default=None, ge=1)
    """Steps between two validations, whose losses and scores of decisions are taken with the reference's events in
    sight; default: once an epoch."""
    stream_every: int | None = Field(default=None, ge=1)
    """Steps between two streaming validations: the engine runs on a few held-out videos, and what it said and tracked
    is scored as an evaluation scores it. Default: once, with the weights that the model has in the end, as it takes
    longer."""
    stream_videos: int = Field(default=4, ge=0)
    """Videos of a streaming validation, as evenly of all data sets as can be; 0: no streaming validation."""
    stream_minutes: float = Field(default=5.0, gt=0)
    """Most of one such video that is streamed."""
    calibration: CalibrationSettings = CalibrationSettings()
    early_stopping: EarlyStopping | None = None
    """Default: train to the last step, and keep its weights."""
    losses: LossSettings = LossSettings()
    sampling: LabelSamplingSettings = LabelSamplingSettings()
    clips: ClipSettings = ClipSettings()
    reading: ReadingSettings = ReadingSettings()

    @model_validator(mode="after")
    def _measured(self) -> Self:
        rule = self.early_stopping
        if rule and rule.streamed and not (self.stream_videos and self.stream_every):
            raise ValueError(
                f"early_stopping.metric is {rule.metric}, which only streaming measures: set stream_every to the steps "
                "between two streaming validations, and stream_videos above 0"
            )
        return self

    def total_steps(self, sampler: ClipSampler) -> int:
        return self.max_steps or self.epochs * sampler.steps_per_epoch

    def at(self, step: int, total_steps: int) -> Self:
        """The settings of a step (from 0): the losses and draws of `reading` in the last steps."""
        return self if step < total_steps - round(self.reading.share * total_steps) else self.at_the_end

    @property
    def at_the_end(self) -> Self:
        """With the losses and draws of `reading`, where it has a share."""
        if not self.reading.share:
            return self
        losses = {"lookup": self.reading.lookup, "speaking_text": self.reading.speaking_text}
        sampling = {"watch_only_share": self.reading.watch_only_share}
        return self.model_copy(
            update={
                "losses": self.losses.model_copy(update=losses),
                "sampling": self.sampling.model_copy(update=sampling),
            }
        )
