"""`Config`: the sections of all parts below the jobs, validated together."""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from prospect.corpus.settings import CorpusSettings
from prospect.data.labels.settings import LabelSettings
from prospect.data.sources import DataSettings
from prospect.dialogue.prompt import ContextSettings
from prospect.errors import ConfigError
from prospect.evaluation.settings import EvaluationSettings
from prospect.model.settings import ModelSettings
from prospect.settings import LocalPath, Place, Settings, is_given
from prospect.streaming.settings import StreamingSettings
from prospect.tracking.settings import TrackingSettings
from prospect.training.checks import card_bytes, check_settings
from prospect.training.settings import TrainingSettings
from prospect.vision.settings import EmbeddingSettings, VisionSettings


class StorageSettings(Settings):
    """Where everything that is written lies."""

    root: Place = Field(default="outputs", validate_default=True)
    """Folder or URL (anything pyarrow opens) of all outputs. A relative path counts from the current folder
    and is refused inside a cluster job, where every node would take it for a folder of its own."""

    @field_validator("root")
    @classmethod
    def _absolute(cls, root: str) -> str:
        path = Path(root)
        if "://" in root or path.is_absolute():
            return root if "://" in root else str(path)
        if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:  # Ray sets it for the driver of a submitted job
            raise ConfigError(
                f"`storage.root` is the relative path `{root}`, which no two nodes of a cluster share: give an absolute"
                " path or a URL, such as storage.root=/shared/outputs, or set PROSPECT_STORAGE_ROOT where Ray starts.",
                field="storage.root",
            )
        return str(path.resolve())


class ClusterSettings(Settings):
    """What jobs ask of the Ray cluster."""

    gpus: Literal["auto"] | NonNegativeInt = "auto"
    """GPUs that a job may ask for: `auto` takes all that the cluster has or that its autoscaler can bring; 0 keeps the
    job on CPUs."""


class Config(Settings):
    """The sections that jobs share. A job reads those that its file in configs/ names; the others keep their defaults.

    A job with a section of its own has a subclass.
    """

    storage: StorageSettings = Field(default_factory=StorageSettings)
    cluster: ClusterSettings = Field(default_factory=ClusterSettings)
    corpus: CorpusSettings = Field(default_factory=CorpusSettings)
    data: DataSettings = Field(default_factory=lambda: DataSettings(source="dialogues", path="outputs/corpus"))
    labels: LabelSettings = Field(default_factory=LabelSettings)
    vision: VisionSettings = Field(default_factory=VisionSettings)
    embedding: EmbeddingSettings = Field(default_factory=EmbeddingSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    context: ContextSettings = Field(default_factory=ContextSettings)
    streaming: StreamingSettings = Field(default_factory=StreamingSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)
    preview: str | None = None
    """A video id: writes one HTML page on this video's labels, and labels nothing."""
    rescore: LocalPath | None = None
    """A result of an evaluation, or its predictions: scores them again by the rules of `evaluation`, without the
    model."""
    compare: Annotated[list[str], Field(min_length=2, max_length=2)] | None = None
    """Two results of evaluations, each by its file, its run's name or its model: compares them video by video."""
    plan: bool = False
    """Print what the run would train and how much memory it would take, and end: nothing is loaded or trained."""
    card: str | None = None
    """The device that plan=true judges by, such as 24GB or 80GB. Default: this machine's GPU, and 24GB without one."""

    @property
    def encoder_is_given(self) -> bool:
        """Whether an encoder is named, and not only what is as good as a stored one."""
        return is_given(self, "vision") and self.vision.model_fields_set != {"equivalent_to"}

    @model_validator(mode="after")
    def _together(self) -> Self:
        check_settings(self.model, self.training)
        self._check_room()
        if self.card is not None:
            card_bytes(self.card)
        return self

    def _check_room(self) -> None:
        """Raise a ConfigError where a frame of many tokens does not fit behind a context."""
        tokens, context = self.vision.tokens_per_frame, self.context
        if tokens > 1 and context.max_context_tokens + tokens > context.max_seq_len:
            raise ConfigError(
                f"`vision.tokens_per_frame` ({tokens}) does not fit: with a context of context.max_context_tokens="
                f"{context.max_context_tokens} a frame exceeds context.max_seq_len={context.max_seq_len}; pool to "
                "fewer tokens, or raise it.",
                field="vision.tokens_per_frame",
            )
