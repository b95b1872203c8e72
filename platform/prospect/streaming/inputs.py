"""What clients and other engines give, checked before anything is changed by it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import LlamaConfig

from prospect.dialogue.state import StepState, TaskState
from prospect.errors import FingerprintError, SessionError
from prospect.lineage import fingerprint
from prospect.model.checkpoint import LoadedModel
from prospect.streaming.journal import SessionLog
from prospect.streaming.parking import Parked, unpack


def coded(code: str, message: str, field: str | None = None) -> SessionError:
    """An error that clients know by its code."""
    error = SessionError(message, field=field)
    error.code = code
    return error


def checked_embedding(embedding: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """A frame's features [I, D] as float16.

    Raises:
        SessionError: `wrong_shape`, or values that are not finite.
    """
    expected = (config.tokens_per_frame, config.vision_dim)
    if embedding.shape != expected:
        message = f"embedding: has shape {list(embedding.shape)}, expected {list(expected)}"
        raise coded("wrong_shape", message, "embedding")
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
            raise SessionError(f"state.{step_id}: {label!r} is none of {known}", field="state")
        steps[index] = StepState[label.upper()]
    return TaskState(tuple(steps))


def model_hash(config: LlamaConfig) -> str:
    """Whose tokens a log holds."""
    return fingerprint([config.vocab_size, config.hidden_size, config.num_hidden_layers, config.grammar_ids])


def checked_log(log: Mapping[str, Any], loaded: LoadedModel, max_seq_len: int) -> SessionLog:
    """Reads a log; what a foreign or damaged one would break is refused.

    Raises:
        FingerprintError: it was recorded with another encoder.
        SessionError: with another model, longer than `max_seq_len` tokens, or it is unreadable.
    """
    if log.get("fingerprint") != loaded.fingerprint:
        raise FingerprintError(
            f"session log: recorded with {log.get('fingerprint')}, this model expects {loaded.fingerprint}"
        )
    restored, config = SessionLog.from_json(log), loaded.model.config
    segment = restored.segment
    if log.get("model") != model_hash(config):
        raise SessionError("session log: recorded with another model", field="model")
    frames = [*segment.tail, *segment.frames, *restored.tail]
    if any(frame.shape != (config.tokens_per_frame, config.vision_dim) for frame in frames):
        raise SessionError("session log: frames of another shape than the model's", field="segment")
    if len(segment.frames) != len(segment.events) or len(segment.tail) != segment.context.tail_frames:
        raise SessionError("session log: its frames and its events differ in number", field="segment")
    length = len(segment.sequence(loaded.vocabulary, config.tokens_per_frame).ids)
    if length > max_seq_len:
        raise SessionError(f"session log: {length} tokens, this engine holds {max_seq_len}")
    return restored


def checked_cache(log: Mapping[str, Any], restored: SessionLog, loaded: LoadedModel) -> Parked:
    """The keys and values in a log: as many as its segment has tokens.

    Raises:
        SessionError: they are unreadable, or of another segment.
    """
    parked = unpack(log["cache"])
    length = len(restored.segment.sequence(loaded.vocabulary, loaded.model.config.tokens_per_frame).ids)
    held = parked["keys"].shape[1] if "keys" in parked and parked["keys"].dim() == 4 else 0
    if held != length:
        raise SessionError(f"session log: its cache holds {held} tokens, its segment has {length}", field="cache")
    return parked
