"""Held-out dialogues through the streaming engine, as live sessions would run."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from prospect.dialogue.schema import Dialogue
from prospect.dialogue.timeline import Timeline
from prospect.evaluation.records import VideoDecisions, scored_frames
from prospect.lineage import derived_seed
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.outputs import Decision, SessionSpec

Placed = tuple[Dialogue, Timeline]

View = Literal["watched", "shuffled", "blank"]
"""What the model is shown: the video, its frames in random order, or the same empty frame all along."""


def spec_of(dialogue: Dialogue, timeline: Timeline) -> SessionSpec:
    """What a session about this dialogue starts from, at the first frame that the dialogue uses."""
    return SessionSpec(
        goal=dialogue.goal,
        steps=dialogue.step_names,
        knowledge=dialogue.knowledge,
        state=timeline.state_before(scored_frames(dialogue, timeline).start),
        track=dialogue.has_dst_labels,
    )


def view_of(frames: np.ndarray, view: View, blank: np.ndarray, seed: object) -> np.ndarray:
    """Features [T, I, D] as the model is to see them; `blank` is [D]."""
    if view == "shuffled":
        order = np.random.default_rng(derived_seed("shuffled", seed)).permutation(len(frames))
        return frames[order]
    if view == "blank":
        return np.broadcast_to(blank.astype(frames.dtype), frames.shape)
    return frames


def stream_dialogues(
    engine: StreamingEngine, placed: Sequence[Placed], read: Callable[[Dialogue, int, int], np.ndarray]
) -> list[VideoDecisions]:
    """Runs every dialogue as a session of its own, all of them together; users say what the reference's users say.

    Args:
        engine: with room for `len(placed)` sessions and all of their frames.
        placed: dialogues with their timelines.
        read: (dialogue, start, stop) -> features [stop - start, I, D].
    """
    decisions: dict[str, list[Decision]] = {}
    names = {f"{index}": pair for index, pair in enumerate(placed)}
    for name, (dialogue, timeline) in names.items():
        decisions[name] = []
        engine.open(name, spec_of(dialogue, timeline))
        span = scored_frames(dialogue, timeline)
        for frame, features in zip(span, read(dialogue, span.start, span.stop), strict=True):
            for text in timeline[frame].user:
                engine.push_text(name, text)
            engine.push_frame(name, features)
    while engine.has_work():
        for name, event in engine.step():
            if isinstance(event, Decision):
                decisions[name].append(event)
    for name in names:
        engine.close(name)
    return [
        VideoDecisions(dialogue, timeline, decisions[name], scored_frames(dialogue, timeline).start)
        for name, (dialogue, timeline) in names.items()
    ]
