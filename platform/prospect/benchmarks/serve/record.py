"""What one measurement noted of each frame, and the numbers made of it; the same for all systems."""

from typing import Any

import numpy as np

from prospect.benchmarks.engine.load import LoadRecord
from prospect.dialogue.timeline import FPS
from prospect.percentiles import Percentiles


def to_record(heard: dict[str, Any], speaks: np.ndarray) -> LoadRecord:
    """What a client heard (`prospect.benchmarks.serve.client`); its frames count from when they were sent.

    Args:
        heard: times of the client [S, F].
        speaks: [S, F], at which frames something was to be said.
    """
    sessions, frames = heard["sent"].shape
    record = LoadRecord.empty(sessions, range(frames))
    record.due, record.first, record.done = heard["sent"], heard["first"], heard["done"]
    record.spoke = speaks & ~np.isnan(record.done)
    record.seconds = heard["seconds"]
    return record


def paced_row(record: LoadRecord, speaks: np.ndarray) -> dict[str, Any]:
    """Latencies of a paced measurement, milliseconds.

    `decision`: of frames at which nothing is said; `first_words`: the first piece of what is said, a durable message;
    `utterance`: the decision behind it.
    """
    known = ~np.isnan(record.due) & (record.due <= record.seconds)
    waited, _ = record.latencies()
    silent = ~speaks[known]
    period = record.due.shape[1] / FPS
    asked = record.due.size / period
    return {
        "decision": to_json(Percentiles.of(waited[silent])),
        "first_words": to_json(Percentiles.of(record.first_tokens())),
        "utterance": to_json(Percentiles.of((record.done - record.due)[record.spoke])),
        "asked_per_s": asked,
        "done_per_s": float((record.done <= period).sum() / period),
        "undecided": int(np.isnan(record.done).sum()),
    }


def to_json(values: Percentiles) -> dict[str, Any]:
    """With null in place of what no number stands for."""
    return {name: None if value != value else round(value, 3) for name, value in values._asdict().items()}
