"""The session log: a session as JSON, from which another engine continues it without its keys and values.

A `Segment` is everything since the context was last built. Feeding its tokens, which are those of a training clip,
rebuilds the cache.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from prospect.dialogue.prompt import Context
from prospect.dialogue.schema import Dialogue, Step
from prospect.dialogue.sequence import FrameSequence, SequenceBuilder
from prospect.dialogue.state import TaskState, format_delta, parse_delta
from prospect.dialogue.timeline import FPS, FrameEvents, record_events
from prospect.errors import ProspectError, SessionError
from prospect.messages import first_line
from prospect.streaming.session.decisions import DecisionGate
from prospect.streaming.session.sampling import RandomState
from prospect.streaming.session.shared import Counters
from prospect.streaming.types import SessionSpec

QueuedFrame = tuple[np.ndarray, tuple[str, ...]]
"""A frame's features [I, D] and what the user said before it."""


@dataclass
class Segment:
    """A context and the frames decided after it. Each frame's features are float16 [I, D]."""

    context: Context
    first_frame: int
    state: TaskState
    """The state in the context: the one before the first of `frames`."""
    tail: list[np.ndarray] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    events: list[FrameEvents] = field(default_factory=list)

    def sequence(self, builder: SequenceBuilder) -> FrameSequence:
        return builder.sequence(self.context, self.events)


def to_dialogue(session_id: str, spec: SessionSpec, events: dict[int, FrameEvents], num_frames: int) -> Dialogue:
    """Convert a recorded live session to a record to train or score on."""
    turns, transitions = record_events(events)
    return Dialogue(
        dataset="live",
        video_id=session_id,
        dialogue_id=session_id,
        goal=spec.goal,
        knowledge=spec.knowledge,
        steps=tuple(Step(id=f"S{i}", name=name) for i, name in enumerate(spec.steps, 1)),
        turns=turns,
        explicit_transitions=transitions,
        duration=max(num_frames, 1) / FPS,
    )


@dataclass(frozen=True)
class SessionLog:
    """A session behind a decided frame; `to_json` and `from_json` carry it to another engine."""

    spec: SessionSpec
    gate: DecisionGate
    """Holds the session's thresholds too. Its JSON key is `restraint`."""
    randomness: RandomState
    state: TaskState
    opening: TaskState
    segment: Segment
    history: dict[int, FrameEvents]
    forgot: bool
    """Whether `history` lacks the first events."""
    said: list[tuple[str, str]]
    summary: str | None
    texts: list[str]
    tail: list[np.ndarray]
    counters: Counters
    stale: bool
    patched: bool
    epoch: int
    """Number of engines that had the session before."""
    waiting: list[QueuedFrame] = field(default_factory=list)
    """Frames that are not decided."""

    def to_json(self) -> dict[str, Any]:
        segment = self.segment
        return {
            "spec": {**vars(self.spec), "state": None if self.spec.state is None else list(self.spec.state.labels)},
            **progress_json(self, self.forgot, self.patched),
            "segment": {
                "context": vars(segment.context),
                "first_frame": segment.first_frame,
                "state": list(segment.state.labels),
                "tail": _pack_arrays(segment.tail),
                "frames": _pack_arrays(segment.frames),
                "events": [_pack_events(events) for events in segment.events],
            },
            "history": {str(frame): _pack_events(events) for frame, events in self.history.items()},
            "tail": _pack_arrays(self.tail),
            "waiting": {
                "frames": _pack_arrays([frame for frame, _ in self.waiting]),
                "texts": [list(texts) for _, texts in self.waiting],
            },
            **{name: getattr(self, name) for name in ("said", "texts", "epoch")},
        }

    @classmethod
    def from_json(cls, log: Mapping[str, Any]) -> "SessionLog":
        """Read what `to_json` wrote, also after a trip through JSON text.

        What was decided since then may stand in `since`: {"at": frames, "events": theirs, "frames": their features,
        "progress": `progress_json` behind the last one}. Where the features of any are lost, `frames` is null, and the
        next frame rebuilds the context from the state.

        Raises:
            SessionError: a field is missing or unreadable; the message names it.
        """
        try:
            since = log.get("since")
            if since is not None:
                return cls._from_json({**log, **since["progress"]})._extended(since)
            return cls._from_json(log)
        except KeyError as error:
            raise SessionError(f"session log: the field {error.args[0]!r} is missing", field=error.args[0]) from error
        except (TypeError, ValueError, ProspectError) as error:
            raise SessionError(f"session log: unreadable ({first_line(error)})") from error

    @classmethod
    def _from_json(cls, log: Mapping[str, Any]) -> "SessionLog":
        segment, spec = log["segment"], log["spec"]
        return cls(
            spec=_SPEC.validate_python({**spec, "state": spec["state"] and TaskState.from_labels(spec["state"])}),
            gate=_GATE.validate_python(log["restraint"]),
            randomness=_RANDOMNESS.validate_python(log["randomness"]),
            state=TaskState.from_labels(log["state"]),
            opening=TaskState.from_labels(log["opening"]),
            segment=Segment(
                _CONTEXT.validate_python(segment["context"]),
                int(segment["first_frame"]),
                TaskState.from_labels(segment["state"]),
                _unpack_arrays(segment["tail"]),
                _unpack_arrays(segment["frames"]),
                [_unpack_events(events) for events in segment["events"]],
            ),
            history={int(frame): _unpack_events(events) for frame, events in log["history"].items()},
            tail=_unpack_arrays(log["tail"]),
            counters=_COUNTERS.validate_python(log["counters"]),
            waiting=_unpack_waiting(log.get("waiting")),
            **{name: kind.validate_python(log[name]) for name, kind in _PLAIN.items()},
        )

    def _extended(self, since: Mapping[str, Any]) -> "SessionLog":
        """Return the log with the frames that were decided since, whose progress it has already."""
        events = [_unpack_events(each) for each in since["events"]]
        history = self.history | {
            int(frame): each for frame, each in zip(since["at"], events, strict=True) if each != FrameEvents()
        }
        said = [*self.said, *(turn for each in events for turn in each.turns)]
        if since["frames"] is None:
            segment = replace(self.segment, frames=[], events=[])
            return replace(self, segment=segment, history=history, said=said, tail=[], stale=True)
        frames = _unpack_arrays(since["frames"])
        first = int(since["progress"]["first_frame"])
        left = first - self.segment.first_frame  # a context that shows one frame alone has begun anew at each
        segment = replace(
            self.segment,
            first_frame=first,
            frames=[*self.segment.frames, *frames][left:],
            events=[*self.segment.events, *events][left:],
        )
        return replace(self, segment=segment, history=history, said=said, tail=[*self.tail, *frames])


@dataclass(frozen=True)
class Settled:
    """A session behind its last decided frame, while the next one may be in work."""

    gate: DecisionGate
    randomness: RandomState
    counters: Counters
    state: TaskState
    opening: TaskState
    segment: Segment
    """It may hold more frames by now."""
    num_frames: int
    """Frames that it held then."""
    said: tuple[tuple[str, str], ...]
    summary: str | None
    tail: tuple[np.ndarray, ...]
    stale: bool


def progress_json(progress: SessionLog | Settled, forgot: bool, patched: bool) -> dict[str, Any]:
    """Return those fields of a log that do not grow with the session."""
    return {
        "restraint": _GATE.dump_python(progress.gate, mode="json"),
        "randomness": dict(vars(progress.randomness)),
        "counters": dict(vars(progress.counters)),
        "state": list(progress.state.labels),
        "opening": list(progress.opening.labels),
        "summary": progress.summary,
        "stale": progress.stale,
        "forgot": forgot,
        "patched": patched,
    }


_SPEC = TypeAdapter(SessionSpec)
_CONTEXT = TypeAdapter(Context)
_GATE = TypeAdapter(DecisionGate)
_RANDOMNESS = TypeAdapter(RandomState)
_COUNTERS = TypeAdapter(Counters)
_TEXTS = TypeAdapter(list[tuple[str, ...]])

_PLAIN: dict[str, TypeAdapter[Any]] = {
    "forgot": TypeAdapter(bool),
    "said": TypeAdapter(list[tuple[str, str]]),
    "summary": TypeAdapter(str | None),
    "texts": TypeAdapter(list[str]),
    "stale": TypeAdapter(bool),
    "patched": TypeAdapter(bool),
    "epoch": TypeAdapter(int),
}
"""Fields that need no conversion to JSON."""


def _pack_arrays(arrays: list[np.ndarray]) -> dict[str, Any]:
    """Pack float16 arrays of equal shape as JSON; `_unpack_arrays` reads plain bytes too."""
    shape = list(arrays[0].shape) if arrays else []
    data = b"".join(np.ascontiguousarray(array, np.float16).tobytes() for array in arrays)
    return {"count": len(arrays), "shape": shape, "float16": base64.b64encode(data).decode()}


def _unpack_arrays(packed: Mapping[str, Any]) -> list[np.ndarray]:
    data = packed["float16"]
    data = np.frombuffer(data if isinstance(data, bytes) else base64.b64decode(data), np.float16)
    return list(data.reshape(packed["count"], *packed["shape"])) if packed["count"] else []


def _unpack_waiting(packed: Mapping[str, Any] | None) -> list[QueuedFrame]:
    """None: in the log of an earlier version no frame waits."""
    if packed is None:
        return []
    texts = _TEXTS.validate_python(packed["texts"])
    return list(zip(_unpack_arrays(packed["frames"]), texts, strict=True))


def _pack_events(events: FrameEvents) -> dict[str, Any]:
    return {"user": list(events.user), "delta": format_delta(events.delta), "utterance": events.utterance}


def _unpack_events(packed: Mapping[str, Any]) -> FrameEvents:
    delta = parse_delta(packed["delta"]) if packed["delta"] else ()
    return FrameEvents(tuple(packed["user"]), delta, packed["utterance"])
