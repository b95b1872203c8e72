"""Streams a saved model's dialogues in the latency-aware mode."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import torch

from prospect.data.embeddings import EmbeddingStore
from prospect.devices import explain_device_failure
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.timeline import Timeline
from prospect.errors import ConfigError, DataError, SessionError
from prospect.evaluation.decision_cache import StreamedModel
from prospect.evaluation.pace_record import PacedRun
from prospect.evaluation.paced import stream_paced
from prospect.evaluation.records import Placed, scored_frames
from prospect.evaluation.settings import PacedSettings
from prospect.evaluation.stream import ReadDialogue, stream_dialogues
from prospect.machine import describe_machine
from prospect.model.checkpoint import load_model
from prospect.streaming.engine import StreamingEngine

_WARM_UP = 4
"""Frames of each session that run before the clock does, so that what an engine spends once is not measured."""


def stream_model(
    model: StreamedModel, placed: Sequence[Placed], settings: PacedSettings, device: str, threads: int
) -> PacedRun:
    """Load a model, and stream dialogues as live sessions.

    Args:
        model: what is streamed.
        placed: dialogues with their timelines.
        settings: of the mode.
        device: `cpu`, `cuda` or `auto`.
        threads: of torch, as many as a served engine has.

    Raises:
        ConfigError: so many sessions do not fit into the KV cache.
        DataError: a dialogue cannot be streamed.
    """
    torch.set_num_threads(threads)
    loaded, store = load_model(model.folder, cache=model.cache, device=device), EmbeddingStore(model.store)
    engine = StreamingEngine(
        loaded, model.context, model.streaming.model_copy(update={"max_sessions": settings.sessions})
    )
    if engine.capacity < settings.sessions and model.streaming.parking == "off":
        raise ConfigError(
            f"`evaluation.paced.sessions` ({settings.sessions}) must not exceed the {engine.capacity} sessions that "
            "fit into the KV cache; lower it, or raise streaming.pages or streaming.memory_share",
            field="evaluation.paced.sessions",
        )

    def read(dialogue: Dialogue, start: int, stop: int) -> np.ndarray:
        return store.read(dialogue.video_id, start, stop)

    try:
        with explain_device_failure():
            _warm_up(engine, placed, read, settings)
            run = stream_paced(engine, placed, read, settings)
    except SessionError as error:
        raise DataError(f"evaluation: a held-out dialogue cannot be streamed: {error}") from error
    used = loaded.model.device.type
    dtype = str(loaded.model.text.norm.weight.dtype).removeprefix("torch.")
    machine = {**describe_machine(used), "kind": used, "dtype": dtype, "attention": engine.attention}
    return replace(run, machine=machine)


def _warm_up(engine: StreamingEngine, placed: Sequence[Placed], read: ReadDialogue, settings: PacedSettings) -> None:
    """Stream the first frames of as many sessions as there will be, without a clock."""
    first = [(_first_frames(*pair), pair[1]) for pair in placed if len(scored_frames(*pair))]
    if first:
        stream_dialogues(engine, list(islice(cycle(first), settings.sessions)), read)
    engine.forget_prefixes()


def _first_frames(dialogue: Dialogue, timeline: Timeline) -> Dialogue:
    start = scored_frames(dialogue, timeline).start
    return dialogue.model_copy(update={"last_frame": start + _WARM_UP})
