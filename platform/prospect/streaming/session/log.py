"""The session log: a session as JSON, from which another engine continues it without its keys and values.

A `Segment` is everything since the context was last built. Feeding its tokens, which are those of a training clip,
rebuilds the cache.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
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
            "restraint": _GATE.dump_python(self.gate, mode="json"),
            "randomness": vars(self.randomness),
            "state": list(self.state.labels),
            "opening": list(self.opening.labels),
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
            "counters": vars(self.counters),
            "waiting": {
                "frames": _pack_arrays([frame for frame, _ in self.waiting]),
                "texts": [list(texts) for _, texts in self.waiting],
            },
            **{name: getattr(self, name) for name in _PLAIN},
        }

    @classmethod
    def from_json(cls, log: Mapping[str, Any]) -> "SessionLog":
        """Read what `to_json` wrote, also after a trip through JSON text.

        Raises:
            SessionError: a field is missing or unreadable; the message names it.
        """
        try:
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
        except KeyError as error:
            raise SessionError(f"session log: the field {error.args[0]!r} is missing", field=error.args[0]) from error
        except (TypeError, ValueError, ProspectError) as error:
            raise SessionError(f"session log: unreadable ({first_line(error)})") from error


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
    """Pack float16 arrays of equal shape as JSON."""
    shape = list(arrays[0].shape) if arrays else []
    data = b"".join(np.ascontiguousarray(array, np.float16).tobytes() for array in arrays)
    return {"count": len(arrays), "shape": shape, "float16": base64.b64encode(data).decode()}


def _unpack_arrays(packed: Mapping[str, Any]) -> list[np.ndarray]:
    data = np.frombuffer(base64.b64decode(packed["float16"]), np.float16)
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
