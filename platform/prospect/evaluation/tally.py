"""Sums over videos, and the metrics that are ratios of them.

All metrics are micro-averaged: a video contributes counts, never a ratio. Every function here also takes
arrays, so one `Tally` can hold all samples of a bootstrap.
"""

from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tally:
    """Sums from which the metrics are ratios; float64 arrays of one shape, () for a plain sum."""

    dialogues: Floats
    frames: Floats
    """Frames that the reference asks to be decided."""
    undecided: Floats
    """Those of them without a decision."""
    seconds: Floats
    generated: Floats
    """Utterances of the system."""
    reference: Floats
    """Utterances of the reference."""
    paired: Floats
    """Utterances that the matcher paired, however alike."""
    correct: Floats
    """Pairs above the similarity threshold."""
    similarity: Floats
    """Summed over correct pairs."""
    distance: Floats
    """Absolute time between correct pairs, in seconds."""
    exact: Floats
    """Correct pairs on one frame."""
    content_right: Floats
    """Correct pairs of the sample corpus whose sentences name the same objects, actions and tools."""
    content_spoken: Floats
    """Utterances of system and reference together, in dialogues of the sample corpus."""
    events_generated: Floats
    events_reference: Floats
    events_matched: Floats
    latency: Floats
    """Generated minus reference time of matched transitions, in seconds."""
    state_frames: Floats
    """Frames of dialogues that have a recipe."""
    state_right: Floats
    """Those whose whole tracked state is the reference's."""
    slots: Floats
    """Steps summed over `state_frames`."""
    slots_right: Floats
    readout_frames: Floats
    """Frames of dialogues with a recipe whose system reads the state off."""
    readout_right: Floats

    @classmethod
    def from_columns(cls, columns: Floats) -> "Tally":
        """The inverse of `columns`: the last axis becomes the fields."""
        return cls(*np.moveaxis(np.asarray(columns, dtype=np.float64), -1, 0))

    def columns(self) -> Floats:
        """float64 [..., K]."""
        return np.stack(astuple(self), axis=-1)

    @classmethod
    def total(cls, tallies: Iterable["Tally"]) -> "Tally":
        columns = [tally.columns() for tally in tallies]
        width = len(cls.__dataclass_fields__)
        return cls.from_columns(np.sum(columns, axis=0) if columns else np.zeros(width))


def _ratio(part: Floats, whole: Floats, empty: float = np.nan) -> Floats:
    """The ratio, and `empty` where `whole` is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.full(whole.shape, empty), where=whole > 0)


def _event_ratio(part: Floats, whole: Floats, tally: Tally) -> Floats:
    """Zero where one side has events and `whole` has none; undefined where neither has."""
    events = tally.events_generated + tally.events_reference
    return np.where(events > 0, _ratio(part, whole, 0.0), np.nan)


Metric = Callable[[Tally], Floats]

METRICS: dict[str, Metric] = {
    "turn_precision": lambda t: _ratio(t.correct, t.generated, 0.0),
    "turn_recall": lambda t: _ratio(t.correct, t.reference, 0.0),
    "turn_f1": lambda t: _ratio(2 * t.correct, t.generated + t.reference, 0.0),
    "content_f1": lambda t: _ratio(2 * t.content_right, t.content_spoken),
    "jaccard_index": lambda t: _ratio(t.correct, t.generated + t.reference - t.paired, 0.0),
    "missing_rate": lambda t: _ratio(t.reference - t.paired, t.reference, 0.0),
    "redundant_rate": lambda t: _ratio(t.generated - t.paired, t.generated, 0.0),
    "semantic_score": lambda t: _ratio(t.similarity, t.correct),
    "time_diff": lambda t: _ratio(t.distance, t.correct),
    "exact_frame_rate": lambda t: _ratio(t.exact, t.correct),
    "dst_precision": lambda t: _event_ratio(t.events_matched, t.events_generated, t),
    "dst_recall": lambda t: _event_ratio(t.events_matched, t.events_reference, t),
    "dst_f1": lambda t: _event_ratio(2 * t.events_matched, t.events_generated + t.events_reference, t),
    "dst_latency": lambda t: _ratio(t.latency, t.events_matched),
    "joint_goal_accuracy": lambda t: _ratio(t.state_right, t.state_frames),
    "slot_accuracy": lambda t: _ratio(t.slots_right, t.slots),
    "readout_joint_goal_accuracy": lambda t: _ratio(t.readout_right, t.readout_frames),
    "utterances_per_minute": lambda t: _ratio(60 * t.generated, t.seconds),
    "reference_utterances_per_minute": lambda t: _ratio(60 * t.reference, t.seconds),
}
"""NaN where undefined. Turn metrics are 0 where nobody speaks, as ProAssist's table needs a number; time and
similarity of correct pairs are undefined without one; state metrics without a recipe are neither 0 nor 1."""
