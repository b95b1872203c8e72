"""Checks that a session log fits this engine, before anything is changed by it."""

from collections.abc import Mapping
from typing import Any

import torch

from prospect.dialogue.sequence import SequenceBuilder
from prospect.errors import FingerprintError, SessionError
from prospect.hashing import fingerprint
from prospect.model.checkpoint import LoadedModel
from prospect.model.interface import DSTModel
from prospect.streaming.kv_cache.parking import Parked, unpack
from prospect.streaming.session.log import SessionLog


def model_hash(model: DSTModel) -> str:
    """Hash what gives a log's tokens their meaning: vocabulary, grammar and size of the model."""
    config, text = model.config, model.text_config
    return fingerprint([text.vocab_size, text.hidden_size, text.num_hidden_layers, config.grammar_ids])


def weights_hash(model: DSTModel) -> str:
    """Hash the weights that a cache was computed with: sums of their bytes, equal on every device."""
    sums = [tensor.reshape(-1).view(torch.uint8).sum(dtype=torch.long) for tensor in model.state_dict().values()]
    return fingerprint(torch.stack(sums).tolist())


def checked_log(log: Mapping[str, Any], loaded: LoadedModel, builder: SequenceBuilder) -> SessionLog:
    """Read a log, and refuse one that does not fit this engine.

    Raises:
        FingerprintError: it was recorded with another encoder.
        SessionError: it was recorded with another model, is longer than `context.max_seq_len`, or is unreadable.
    """
    if log.get("fingerprint") != loaded.fingerprint:
        raise FingerprintError(
            f"session log: recorded with {log.get('fingerprint')}, this model expects {loaded.fingerprint}"
        )
    restored, config = SessionLog.from_json(log), loaded.model.config
    segment = restored.segment
    if log.get("model") != model_hash(loaded.model):
        raise SessionError("session log: recorded with another model", field="model")
    frames = [*segment.tail, *segment.frames, *restored.tail, *(frame for frame, _ in restored.waiting)]
    if any(frame.shape != (config.tokens_per_frame, config.vision_dim) for frame in frames):
        raise SessionError("session log: its frames have another shape than the model's", field="segment")
    if len(segment.frames) != len(segment.events) or len(segment.tail) != segment.context.tail_frames:
        raise SessionError("session log: its frames and its events differ in number", field="segment")
    length = len(segment.sequence(builder).ids)
    if length > (limit := builder.settings.max_seq_len):
        raise SessionError(f"session log: has {length} tokens, this engine holds {limit}")
    return restored


def checked_cache(
    log: Mapping[str, Any], restored: SessionLog, loaded: LoadedModel, builder: SequenceBuilder, weights: str
) -> Parked:
    """Read the keys and values in a log, and refuse those that do not fit its segment.

    Raises:
        SessionError: they are unreadable, belong to another segment, or were computed with other weights.
    """
    if log.get("weights") != weights:
        raise SessionError("session log: its cache was computed with other weights; leave it out", field="cache")
    parked = unpack(log["cache"])
    length = len(restored.segment.sequence(builder).ids)
    held = parked["keys"].shape[1] if "keys" in parked and parked["keys"].dim() == 4 else 0
    if held != length:
        raise SessionError(f"session log: its cache holds {held} tokens, its segment has {length}", field="cache")
    vectors, width = parked.get("step_vectors"), loaded.model.dst_state_head.width
    num_shown = sum(position >= 0 for position in restored.segment.context.step_positions)
    if vectors is not None and vectors.shape != (num_shown, width):
        raise SessionError(
            f"session log: its step vectors have shape {list(vectors.shape)}, expected {[num_shown, width]}",
            field="cache",
        )
    return parked
