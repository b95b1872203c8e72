"""An engine's events: as they travel to the gateway, plain lists for msgpack, and as the client is told of them."""

from dataclasses import dataclass
from typing import Any

from prospect.dialogue.state import TaskState, format_delta, parse_delta
from prospect.protocol.messages import ResponseDone, ServerMessage, StateUpdated, state_map
from prospect.streaming.types import Decision, EngineEvent, Failed, Refreshed, TextPiece


@dataclass(frozen=True)
class Patched:
    """A client has set the state."""

    state: TaskState


@dataclass(frozen=True)
class TextRefused:
    """A text that was to come before frame `seq` does not fit any more, and was left out."""

    seq: int
    message: str


HostedEvent = EngineEvent | Patched | TextRefused


def pack_event(event: HostedEvent) -> list[Any]:
    """Convert an event to what msgpack takes."""
    match event:
        case Decision():
            readout = None if event.readout is None else list(event.readout.labels)
            changed = {
                "state": list(event.state.labels),
                "delta": format_delta(event.delta),
                "readout": readout,
            }
            return ["decision", {**vars(event), **changed}]
        case Patched():
            return ["patched", list(event.state.labels)]
    return [_KINDS[type(event)], vars(event)]


def unpack_event(packed: list[Any]) -> HostedEvent:
    """Convert back."""
    kind, content = packed
    if kind == "patched":
        return Patched(TaskState.from_labels(content))
    if kind == "decision":
        readout = content["readout"]
        changed = {
            "state": TaskState.from_labels(content["state"]),
            "delta": parse_delta(content["delta"]) if content["delta"] else (),
            "readout": None if readout is None else TaskState.from_labels(readout),
        }
        return Decision(**{**content, **changed})
    return _CLASSES[kind](**content)


def messages_of(seq: int, decision: Decision) -> list[ServerMessage]:
    """The messages that follow the `decision` of frame `seq`: a changed state, and what was said."""
    messages: list[ServerMessage] = []
    if decision.delta:
        state, delta = state_map(decision.state), format_delta(decision.delta)
        messages.append(StateUpdated(state=state, delta=delta, seq=seq, frame=decision.frame))
    if decision.utterance is not None:
        messages.append(ResponseDone(seq=seq, frame=decision.frame, text=decision.utterance))
    return messages


_KINDS: dict[type, str] = {TextPiece: "piece", Refreshed: "refreshed", Failed: "failed", TextRefused: "refused"}
_CLASSES = {name: kind for kind, name in _KINDS.items()}
