"""Validation during training: losses and head scores on clips, and scores of streamed dialogues.

On clips the reference's events are in the context; streaming runs the engine. Ranks share the work and get the same
numbers. Neither changes the model or the random draws of training.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prospect.data.batches import Batch
from prospect.data.clips import Clip
from prospect.data.embeddings import EmbeddingStore
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.sequence import SequenceBuilder
from prospect.dialogue.timeline import place
from prospect.errors import DataError, ProspectError
from prospect.evaluation.metrics import average_precision, evaluate
from prospect.evaluation.records import Placed, VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.stream import pick_dialogues, stream_dialogues
from prospect.model.checkpoint import LoadedModel
from prospect.model.interface import DSTModel
from prospect.model.losses import TERMS, label_counts, total_loss
from prospect.model.readings import Readings
from prospect.model.settings import HEADS
from prospect.similarity import SentenceSimilarity
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from prospect.training.backend import TrainingBackend, autocast, raise_on_all_ranks
from prospect.training.loop import Collate, labelled_parts
from prospect.training.preflight import is_out_of_memory
from prospect.training.settings import STREAM_PREFIX, STREAM_SCORES, TrainingError, TrainingSettings

_POINTS = 200
"""Most points of a saved curve."""


@dataclass(frozen=True)
class Validation:
    """Results of a pass over the validation clips.

    Attributes:
        losses: `loss` and its parts.
        scores: of both heads and of the state head, see `head_scores` and `state_scores`.
        curves: precision over recall of both heads, see `head_curve`.
    """

    losses: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)


@torch.no_grad()
def validate(
    backend: TrainingBackend,
    clips: Sequence[Clip],
    collate: Collate,
    settings: TrainingSettings,
    streaming: StreamingSettings | None = None,
) -> Validation:
    """Compute losses and scores on `clips`; `collate` should label every frame, `streaming` has the thresholds.

    Raises:
        TrainingError: an embedding cannot be read; on every rank alike.
    """
    streaming = streaming or StreamingSettings()
    backend.model.eval()
    heads = backend.model.config.decision_backend, backend.model.config.state_head
    totals, readings = torch.zeros(2, len(TERMS), dtype=torch.float64), Readings.empty()
    ordered = sorted(clips, key=len)
    at_once = (1 if settings.micro_batch_tokens else settings.micro_batch_size) * backend.world_size
    for first in range(0, len(ordered), at_once):
        mine = ordered[first : first + at_once][backend.rank :: backend.world_size]
        batch = raise_on_all_ranks(backend, _collated(collate, mine or ordered[:1]))
        sums, read = backend.loss_sums_and_readings(batch.to(backend.device), settings.losses)
        if mine:
            totals[0] += sums.double().cpu()
            totals[1] += label_counts(batch, *heads)
            readings += read
    sums, counts = backend.all_reduce(totals)
    loss, parts = total_loss(sums, counts, settings.losses)
    losses = {"loss": float(loss), **labelled_parts(parts, counts, settings)}
    whole = sum(backend.gather([readings]), Readings.empty())
    found = _scored(losses, whole, streaming) if backend.rank == 0 else None
    return Validation(**_agreed(backend, found and vars(found)))


def _collated(collate: Collate, clips: Sequence[Clip]) -> Batch | DataError:
    try:
        return collate(clips, 0)
    except DataError as error:
        return error


def _agreed(backend: TrainingBackend, found: Any) -> Any:
    """Rank 0's numbers on every rank, so that all ranks decide the same from them."""
    [agreed] = backend.gather([json.dumps(found)] if backend.rank == 0 else [])
    return json.loads(agreed)


def _scored(losses: dict[str, float], readings: Readings, streaming: StreamingSettings) -> Validation:
    scores: dict[str, float] = {}
    curves: dict[str, Any] = {}
    heads = {
        "speak": (readings.speak, streaming.speak_threshold),
        "update": (readings.update, streaming.update_threshold),
    }
    for name, ((probabilities, labels), threshold) in heads.items():
        scores |= {f"{name}_{key}": value for key, value in head_scores(probabilities, labels, threshold).items()}
        if labels.any():
            curves[name] = head_curve(probabilities, labels)
    return Validation(losses, scores | state_scores(readings.states), curves)


def head_scores(probabilities: Tensor, labels: Tensor, threshold: float) -> dict[str, float]:
    """`precision`, `recall` and `f1` above `threshold`, `average_precision`, and the best F1 with its threshold.

    Args:
        probabilities: [N].
        labels: [N] 0 or 1; without a 1 no score is defined, and the result is empty.
        threshold: above which the engine acts.
    """
    truth, acts = labels.bool(), probabilities > threshold
    if not truth.any():
        return {}
    hits, acted, due = (int(count.sum()) for count in (truth & acts, acts, truth))
    best, at = _best_f1(probabilities, labels)
    return {
        "precision": hits / acted if acted else 0.0,
        "recall": hits / due,
        "f1": 2 * hits / (acted + due),
        "average_precision": average_precision(probabilities.tolist(), truth.tolist()) or 0.0,
        "best_f1": best,
        "best_threshold": at,
    }


def _best_f1(probabilities: Tensor, labels: Tensor) -> tuple[float, float]:
    """The best F1 over all thresholds, and a threshold half-way between the probabilities that it separates."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, lowest = precision_recall_curve(labels.numpy(), probabilities.numpy())
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1[:-1].argmax())
    below = lowest[best - 1] if best else 0.0
    return float(f1[best]), float((lowest[best] + below) / 2)


def head_curve(probabilities: Tensor, labels: Tensor) -> dict[str, Any]:
    """Precision-recall curve by falling threshold, with at most `_POINTS` points.

    Returns:
        `recall`, `precision` and `threshold` (lists of equal length), `labels` and `positives` (how many).
    """
    from sklearn.metrics import precision_recall_curve

    precision, recall, threshold = precision_recall_curve(labels.numpy(), probabilities.numpy())
    kept = np.unique(np.searchsorted(-recall[:-1], -np.linspace(1, 0, _POINTS)).clip(max=len(threshold) - 1))[::-1]
    return {
        "recall": recall[kept].tolist(),
        "precision": precision[kept].tolist(),
        "threshold": threshold[kept].tolist(),
        "labels": len(labels),
        "positives": int(labels.sum()),
    }


def state_scores(states: Tensor) -> dict[str, float]:
    """`state_accuracy` over frames and steps, and `state_macro_f1`, the mean F1 of classes with labels.

    Args:
        states: [3, 3] counts, label by prediction.
    """
    if not states.sum():
        return {}
    label, prediction = (axis.flatten() for axis in torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"))
    present = [int(each) for each in torch.nonzero(states.sum(1))]
    from sklearn.metrics import f1_score

    macro = f1_score(
        label, prediction, sample_weight=states.flatten(), labels=present, average="macro", zero_division=0
    )
    return {"state_accuracy": float(states.trace() / states.sum()), "state_macro_f1": float(macro)}


class StreamingValidation:
    """Streams a few held-out dialogues through the engine during training.

    Args:
        clips: validation clips, whose dialogues are streamed.
        store: embeddings of their videos.
        builder: writes the model's sequences.
        streaming: settings of the engine.
        evaluation: settings of the scores.
        settings: how many videos and minutes are streamed.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        store: EmbeddingStore,
        builder: SequenceBuilder,
        streaming: StreamingSettings,
        evaluation: EvaluationSettings,
        settings: TrainingSettings,
    ) -> None:
        dialogues = {(clip.dialogue.video_id, clip.dialogue.dialogue_id): clip.dialogue for clip in clips}
        placed = [(dialogue, place(dialogue, store.num_frames(dialogue.video_id))) for dialogue in dialogues.values()]
        self._placed = pick_dialogues(placed, settings.stream_videos, settings.stream_minutes)
        self._read, self._builder = store.read, builder
        room = {"max_sessions": max(1, len(self._placed)), "max_waiting_frames": 10**9, "calibrated": False}
        self._streaming = streaming.model_copy(update=room)
        self._evaluation = evaluation.model_copy(update={"bootstrap_samples": 1})

    @cached_property
    def _encoder(self) -> SentenceSimilarity:
        return SentenceSimilarity(self._evaluation.similarity)

    @property
    def wanted(self) -> bool:
        """Whether any dialogue is to be streamed."""
        return bool(self._placed)

    def scores(self, backend: TrainingBackend) -> dict[str, float]:
        """`STREAM_SCORES` that are defined, with the prefix `stream_`.

        Raises:
            TrainingError: a dialogue cannot be streamed, or the device runs out of memory; on every rank alike.
        """
        mine = self._placed[backend.rank :: backend.world_size]
        with backend.whole_model() as model:
            streamed = self._stream(model, mine) if mine else []
        videos = backend.gather(raise_on_all_ranks(backend, streamed))
        found = raise_on_all_ranks(backend, self._score(videos) if backend.rank == 0 else None)
        return _agreed(backend, found)

    def _stream(self, model: DSTModel, placed: Sequence[Placed]) -> list[VideoDecisions] | ProspectError:
        def read(dialogue: Dialogue, start: int, stop: int) -> np.ndarray:
            return self._read(dialogue.video_id, start, stop)

        try:
            with ready_to_stream(model), autocast(model):
                loaded = LoadedModel(model, self._builder.vocabulary, Path(), {})
                engine = StreamingEngine(loaded, self._builder.settings, self._streaming)
                return stream_dialogues(engine, placed, read)
        except ProspectError as error:
            return error
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return TrainingError(
                f"the device ran out of memory while {len(placed)} held-out videos were streamed at once: lower "
                "training.stream_videos, and start the run again"
            )

    def _score(self, videos: Sequence[VideoDecisions]) -> dict[str, float] | ProspectError:
        try:
            metrics = evaluate(videos, self._evaluation, self._encoder).logged()
        except ProspectError as error:
            return error
        return {f"{STREAM_PREFIX}{name}": metrics[name] for name in STREAM_SCORES if name in metrics}


@contextmanager
def ready_to_stream(model: DSTModel) -> Iterator[None]:
    """Put a model in training into the state that the engine needs, untrained heads allowed; restore it afterwards."""
    config, training = model.config, model.training
    attention, trained_steps = config._attn_implementation, config.trained_steps
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        config.trained_steps = dict.fromkeys(HEADS, 1)
        with torch.random.fork_rng(devices):
            model.eval()
            yield
    finally:
        config.trained_steps = trained_steps
        model.set_attn_implementation(attention)
        model.train(training)
