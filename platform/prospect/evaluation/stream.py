"""Held-out dialogues through the streaming engine, as live sessions would run."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

import numpy as np

from prospect.dialogue.schema import Dialogue
from prospect.dialogue.state import format_delta
from prospect.dialogue.timeline import FPS, Timeline
from prospect.errors import SessionError
from prospect.evaluation.records import Placed, Variant, VideoDecisions, View, scored_frames
from prospect.evaluation.streamed import Stream
from prospect.hashing import derived_seed
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.types import Decision, Failed, Refreshed, SessionSpec

ReadDialogue = Callable[[Dialogue, int, int], np.ndarray]
"""(dialogue, start, stop) -> features [stop - start, I, D]."""


def spec_of(dialogue: Dialogue, timeline: Timeline, variant: Variant = Variant()) -> SessionSpec:  # noqa: B008
    """What a session about this dialogue starts from, at the first frame that the dialogue uses.

    The summary and the reference's deltas are there for the context strategies that ask for them.
    """
    span = scored_frames(dialogue, timeline)
    return SessionSpec(
        goal=dialogue.goal,
        steps=dialogue.step_names,
        knowledge=dialogue.knowledge,
        state=timeline.state_before(span.start),
        track=dialogue.has_dst_labels and variant.view != "untracked",
        speak_threshold=variant.speak,
        update_threshold=variant.update,
        dataset=dialogue.dataset,
        summary=dialogue.progress,
        oracle=tuple(
            (frame - span.start, format_delta(events.delta))
            for frame, events in sorted(timeline.events.items())
            if events.delta and frame in span
        ),
        told=variant.view == "told",
    )


def pick_dialogues(placed: Sequence[Placed], count: int | None, minutes: float) -> list[Placed]:
    """Some dialogues to stream: each of another video, as evenly of all data sets as can be, always the same ones.

    Args:
        placed: to pick from.
        count: how many at most; None: one of each video.
        minutes: of which no more than this is streamed.
    """
    videos: dict[str, dict[str, Placed]] = defaultdict(dict)
    for pair in sorted(placed, key=lambda pair: derived_seed("pick", pair[0].video_id, pair[0].dialogue_id)):
        if len(scored_frames(*pair)) and not pair[0].summary_only:
            videos[pair[0].dataset].setdefault(pair[0].video_id, pair)
    rounds = zip_longest(*(videos[dataset].values() for dataset in sorted(videos)))
    picked = [pair for round_ in rounds for pair in round_ if pair is not None][:count]
    return [(_shortened(dialogue, timeline, minutes), timeline) for dialogue, timeline in picked]


def _shortened(dialogue: Dialogue, timeline: Timeline, minutes: float) -> Dialogue:
    span = scored_frames(dialogue, timeline)
    last = span.start + max(1, int(60 * FPS * minutes))
    return dialogue.model_copy(update={"last_frame": last}) if last < span.stop else dialogue


def view_of(frames: np.ndarray, view: View, blank: np.ndarray, seed: object) -> np.ndarray:
    """Features [T, I, D] as the model is to see them; `blank` is [D]."""
    if view == "shuffled":
        order = np.random.default_rng(derived_seed("shuffled", seed)).permutation(len(frames))
        return frames[order]
    if view == "blank":
        return np.broadcast_to(blank.astype(frames.dtype), frames.shape)
    return frames


def stream_dialogues(
    engine: StreamingEngine,
    placed: Sequence[Placed],
    read: ReadDialogue,
    specs: Sequence[SessionSpec] | None = None,
) -> list[VideoDecisions]:
    """Runs every dialogue as a session of its own, all of them together; users say what the reference's users say.

    Args:
        engine: with room for `len(placed)` sessions and all of their frames.
        placed: dialogues with their timelines.
        read: features of a dialogue's frames.
        specs: what each session starts from; default: `spec_of` its dialogue.

    Raises:
        SessionError: a dialogue does not fit the engine's context, or a session met a defect.
    """
    names = {f"{index}": pair for index, pair in enumerate(placed)}
    streams = {name: Stream([], []) for name in names}
    try:
        _stream(engine, names, read, specs or [spec_of(*pair) for pair in placed], streams)
    finally:
        for name in streams.keys() & set(engine.session_ids):
            engine.close(name)
    return [streams[name].beside(pair) for name, pair in names.items()]


def _stream(
    engine: StreamingEngine,
    names: Mapping[str, Placed],
    read: ReadDialogue,
    specs: Sequence[SessionSpec],
    streams: Mapping[str, Stream],
) -> None:
    """Open a session by each name, push all of its frames, and collect its decisions and refreshes."""
    for (name, (dialogue, timeline)), spec in zip(names.items(), specs, strict=True):
        engine.open(name, spec)
        span = scored_frames(dialogue, timeline)
        for frame, features in zip(span, read(dialogue, span.start, span.stop), strict=True):
            for text in timeline[frame].user:
                engine.push_text(name, text)
            engine.push_frame(name, features)
    while engine.has_work():
        for name, event in engine.step():
            if isinstance(event, Failed):
                raise SessionError(f"dialogue {names[name][0].dialogue_id!r} cannot be streamed: {event.reason}")
            if isinstance(event, Decision):
                streams[name].decisions.append(event)
            elif isinstance(event, Refreshed):
                streams[name].refreshes.append(event)
