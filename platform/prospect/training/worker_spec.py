"""The job that every training worker gets, and the model, tokenizer and collators that it builds from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer

from prospect.data.batches import Collator
from prospect.data.clips import Clip
from prospect.data.embeddings import EmbeddingStore
from prospect.data.lookups import LookupFinder
from prospect.dialogue.prompt import ContextSettings
from prospect.dialogue.sequence import SequenceBuilder
from prospect.dialogue.vocabulary import Vocabulary
from prospect.errors import ProspectError
from prospect.evaluation.settings import EvaluationSettings
from prospect.model.adapters import adapt, build_model
from prospect.model.interface import DSTModel
from prospect.model.settings import ModelSettings
from prospect.streaming.settings import StreamingSettings
from prospect.training.memory_plan import MemoryPlan
from prospect.training.preflight import explain_oom
from prospect.training.settings import TrainingSettings
from prospect.training.validation import StreamingValidation

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class TrainingData:
    """Clips of both splits."""

    train: Sequence[Clip]
    validation: Sequence[Clip]
    frame_statistics: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
    """Mean [D] and whitening [D, D] of the training frames, with `model.whiten_frames`."""


@dataclass(frozen=True)
class WorkerJob:
    """Settings and paths of a training run; every node can read and write the folders."""

    model: ModelSettings
    training: TrainingSettings
    context: ContextSettings
    folder: Path
    """Folder of the run: tokenizer, metrics, checkpoints and the finished model."""
    cache: Path
    """Folder of base models converted from packages."""
    store: str
    """Root of the embedding store."""
    manifest: dict[str, Any]
    """JSON that is saved with the model."""
    planned: MemoryPlan | None = None
    """Memory of one worker."""
    streaming: StreamingSettings = field(default_factory=StreamingSettings)
    """The engine's settings in streaming validation; its thresholds also count in the scores of decisions."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """How streaming validation is scored."""


@dataclass(frozen=True)
class WorkerParts:
    """Objects that a worker builds before it talks to the other ranks."""

    tokenizer: Any
    model: "DSTModel | PeftModel"
    """With the same weights on every rank."""
    streaming: StreamingValidation
    collate: Collator
    collate_reading: Collator
    """For the last steps, `training.reading.share` of them."""
    collate_all: Collator
    """Labels every frame, for validation."""


def build_parts(job: WorkerJob, data: TrainingData) -> WorkerParts | ProspectError:
    """Build model, tokenizer and collators; returns a user's mistake, so that all ranks can raise it together."""
    try:
        with explain_oom(job.model, job.training, job.planned, lambda: "while the model was loaded"):
            tokenizer, store = AutoTokenizer.from_pretrained(job.folder / "tokenizer"), EmbeddingStore(job.store)
            builder = SequenceBuilder(Vocabulary(tokenizer), job.context, store.tokens_per_frame)
            streaming = StreamingValidation(
                data.validation, store, builder, job.streaming, job.evaluation, job.training
            )
            model = _build(job, data, tokenizer, store)
            return WorkerParts(tokenizer, model, streaming, *_collators(job.training, builder, store, data.train))
    except ProspectError as error:
        return error


def _collators(
    training: TrainingSettings, builder: SequenceBuilder, store: EmbeddingStore, clips: Sequence[Clip]
) -> list[Collator]:
    """The collators of `WorkerParts`, in its order."""
    reading = training.at_the_end
    now, later = training.losses.lookup > 0, reading.losses.lookup > 0
    names = {name for clip in clips for name in clip.dialogue.step_names} if now or later else ()
    finder = LookupFinder(builder.vocabulary, names, training.seed)
    return [
        Collator(builder, store.read, training.sampling, finder=finder if now else None),
        Collator(builder, store.read, reading.sampling, finder=finder if later else None),
        Collator(builder, store.read, None, finder=finder if now else None),
    ]


def _build(job: WorkerJob, data: TrainingData, tokenizer: Any, store: EmbeddingStore) -> "DSTModel | PeftModel":
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
        model.mm_projector.fix_whitening(*map(torch.from_numpy, data.frame_statistics))
    return adapt(model, job.model)
