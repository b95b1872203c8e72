"""What clients and other engines give, checked before anything is changed by it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from prospect.dialogue.sequence import SequenceBuilder
from prospect.dialogue.state import StepState, TaskState
from prospect.errors import FingerprintError, SessionError, session_error
from prospect.hashing import fingerprint
from prospect.model.checkpoint import LoadedModel
from prospect.model.interface import DSTConfig, DSTModel
from prospect.streaming.kv_cache.parking import Parked, unpack
from prospect.streaming.session.log import SessionLog


def checked_embedding(embedding: np.ndarray, config: DSTConfig) -> np.ndarray:
    """A frame's features [I, D] as float16.

    Raises:
        SessionError: `wrong_shape`, or values that are not finite.
    """
    expected = (config.tokens_per_frame, config.vision_dim)
    if embedding.shape != expected:
        message = f"embedding: has shape {list(embedding.shape)}, expected {list(expected)}"
        raise session_error("wrong_shape", message, "embedding")
    embedding = np.asarray(embedding, np.float16)
    if not np.isfinite(embedding).all():
        raise SessionError("embedding: holds values that are not finite", field="embedding")
    return embedding


def changed_state(state: TaskState, changes: Mapping[str, str]) -> TaskState:
    """With steps set by id, such as {"S2": "completed"}.

    Raises:
        SessionError: a step or a state that does not exist.
    """
    steps = list(state.steps)
    for step_id, label in changes.items():
        index = int(step_id[1:]) - 1 if step_id[:1] == "S" and step_id[1:].isdecimal() else -1
        if not 0 <= index < len(steps):
            raise SessionError(f"state: no step {step_id!r} in a recipe of {len(steps)}", field="state")
        if label.upper() not in StepState.__members__:
            known = ", ".join(state.label for state in StepState)
            raise SessionError(f"state.{step_id}: {label!r} must be one of {known}", field="state")
        steps[index] = StepState[label.upper()]
    return TaskState(tuple(steps))


def model_hash(model: DSTModel) -> str:
    """Whose tokens a log holds."""
    config, text = model.config, model.text_config
    return fingerprint([config.vocab_size, text.hidden_size, text.num_hidden_layers, config.grammar_ids])


def weights_hash(model: DSTModel) -> str:
    """Whose keys and values a cache holds: sums of the weights' bytes, the same in any order and on any device."""
    sums = [tensor.reshape(-1).view(torch.uint8).sum(dtype=torch.long) for tensor in model.state_dict().values()]
    return fingerprint(torch.stack(sums).tolist())


def checked_log(log: Mapping[str, Any], loaded: LoadedModel, builder: SequenceBuilder) -> SessionLog:
    """Reads a log; what a foreign or damaged one would break is refused.

    Raises:
        FingerprintError: it was recorded with another encoder.
        SessionError: with another model, longer than `context.max_seq_len`, or it is unreadable.
    """
    if log.get("fingerprint") != loaded.fingerprint:
        raise FingerprintError(
            f"session log: recorded with {log.get('fingerprint')}, this model expects {loaded.fingerprint}"
        )
    restored, config = SessionLog.from_json(log), loaded.model.config
    segment = restored.segment
    if log.get("model") != model_hash(loaded.model):
        raise SessionError("session log: recorded with another model", field="model")
    frames = [*segment.tail, *segment.frames, *restored.tail]
    if any(frame.shape != (config.tokens_per_frame, config.vision_dim) for frame in frames):
        raise SessionError("session log: frames of another shape than the model's", field="segment")
    if len(segment.frames) != len(segment.events) or len(segment.tail) != segment.context.tail_frames:
        raise SessionError("session log: its frames and its events differ in number", field="segment")
    length = len(segment.sequence(builder).ids)
    if length > (limit := builder.settings.max_seq_len):
        raise SessionError(f"session log: {length} tokens, this engine holds {limit}")
    return restored


def checked_cache(
    log: Mapping[str, Any], restored: SessionLog, loaded: LoadedModel, builder: SequenceBuilder, weights: str
) -> Parked:
    """The keys and values in a log: as many as its segment has tokens, with the vectors of its steps.

    Raises:
        SessionError: they are unreadable, of another segment, or computed with other weights.
    """
    if log.get("weights") != weights:
        raise SessionError("session log: its cache was computed with other weights; leave it out", field="cache")
    parked = unpack(log["cache"])
    length = len(restored.segment.sequence(builder).ids)
    held = parked["keys"].shape[1] if "keys" in parked and parked["keys"].dim() == 4 else 0
    if held != length:
        raise SessionError(f"session log: its cache holds {held} tokens, its segment has {length}", field="cache")
    vectors, width = parked.get("step_vectors"), loaded.model.dst_state_head.step.out_features
    num_shown = sum(position >= 0 for position in restored.segment.context.step_positions)
    if vectors is not None and vectors.shape != (num_shown, width):
        raise SessionError(
            f"session log: its step vectors have shape {list(vectors.shape)}, expected {[num_shown, width]}",
            field="cache",
        )
    return parked
