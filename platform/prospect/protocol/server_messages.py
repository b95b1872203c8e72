"""Messages that a server sends over a WebSocket, and the bodies of its HTTP answers."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from prospect.dialogue.state import TaskState, format_delta
from prospect.dialogue.timeline import FrameEvents, decision_time
from prospect.errors import ProspectError
from prospect.protocol.fields import StateMap
from prospect.streaming.types import Decision, Silence


def state_map(state: TaskState) -> StateMap:
    """Convert a state to its form in messages."""
    labels: tuple[Any, ...] = state.labels
    return {f"S{number}": label for number, label in enumerate(labels, 1)}


class ServerModel(BaseModel):
    """A message that ignores unknown fields, so that a server may be newer than its client."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class DurableMessage(ServerModel):
    """A message that a client which resumes gets again, once and in order, if it lacks it."""

    event: int | None = None
    """1, 2, 3, ... within the session; absent over HTTP and in errors that answer a message of this connection."""


TAKEN_OVER = 4001
"""Close code of a stream whose session goes on in another one."""
UNAUTHORIZED = 4003
"""Close code of a stream without a good API key."""
CAPABILITIES = ("resume_from_event", "event_ack", "session_streams", "webp", "watching")
"""What this server does, for clients that know older or newer ones."""


class Thresholds(ServerModel):
    """Probabilities above which a session's assistant acts."""

    speak: float
    update: float


class SessionCreated(ServerModel):
    """The session is open."""

    type: Literal["session.created"] = "session.created"
    session_id: str
    resume: str
    """Handle with which another WebSocket continues the session; good until that one has sent a message."""
    fps: float
    fingerprint: str
    tokens_per_frame: int
    next_seq: int = 0
    """The next frame that the server expects: a client that resumes sends its frames again from there."""
    last_event: int = 0
    """Number of the last durable message."""
    capabilities: tuple[str, ...] = ()
    """What the server does: `resume_from_event`, `event_ack`, `session_streams`, `webp`, `watching`."""
    thresholds: Thresholds | None = None
    """Those that apply: the session's own, else the model's."""
    state: StateMap


class DecidedFrame(ServerModel):
    """A decided frame: the fields that `decision` and `FrameOutcome` share."""

    seq: int
    frame: int
    """Index in the session's stream; decided at (frame + 1) / fps seconds."""
    p_speak: float
    p_update: float
    readout: StateMap | None = None
    """The most probable state, read at this frame without generating text."""
    silence: Silence | None = None
    """Why nothing was said: `threshold`, `cooldown` or `hysteresis`; null if something was."""

    @classmethod
    def of(cls, seq: int, decision: Decision) -> Self:
        """Convert the engine's decision at the frame that the client sent as `seq`."""
        converted = {
            "seq": seq,
            "state": state_map(decision.state),
            "delta": format_delta(decision.delta),
            "readout": state_map(decision.readout) if decision.readout else None,
        }
        return cls.model_validate(vars(decision) | converted)


class FrameDecision(DecidedFrame):
    """A frame is decided. Pieces of its utterance came before (`response.delta`); the results follow at once."""

    type: Literal["decision"] = "decision"


class StateUpdated(DurableMessage):
    """The tracked state changed."""

    type: Literal["state.updated"] = "state.updated"
    state: StateMap
    delta: str = ""
    """`S1->complete; S2->start`; empty if the client patched the state."""
    seq: int | None = None
    frame: int | None = None


class ResponseDelta(DurableMessage):
    """A piece of the utterance that is being generated at `frame`."""

    type: Literal["response.delta"] = "response.delta"
    seq: int
    frame: int
    text: str


class ResponseDone(DurableMessage):
    """The whole utterance of `frame`."""

    type: Literal["response.done"] = "response.done"
    seq: int
    frame: int
    text: str


class FrameDropped(DurableMessage):
    """The frame was dropped, since too many are waiting. The stream goes on with the next seq."""

    type: Literal["frame.dropped"] = "frame.dropped"
    seq: int
    reason: str


class SessionRefreshed(DurableMessage):
    """The context was full or the state was patched: the context is rebuilt before `frame`."""

    type: Literal["session.refreshed"] = "session.refreshed"
    frame: int
    tokens_before: int
    tokens_after: int
    summary: str | None = None
    """Summary of the progress, if the model was asked for one."""
    oracle: bool = False
    """Whether the model was told a reference's state for the summary; in evaluation only."""


class SessionGoingAway(DurableMessage):
    """This server stops; continue the session elsewhere with the handle."""

    type: Literal["session.going_away"] = "session.going_away"
    resume: str
    reason: str


class ResponseCancelled(DurableMessage):
    """The pieces of the utterance at `frame` are taken back: the session has moved, and it is said anew."""

    type: Literal["response.cancelled"] = "response.cancelled"
    seq: int
    frame: int


class SessionMoved(ServerModel):
    """The stream goes on in another process of the server."""

    type: Literal["session.moved"] = "session.moved"
    decided_to: int
    """seq of the last decided frame; decisions up to it are not sent again, what they changed stands in state and
    events."""
    seconds: float = 0.0
    """For which nothing was decided; 0 where the connection alone moved."""
    lost_frames: int = 0
    """Decided frames that the next context cannot show again: state and conversation are there, their pictures not."""


class SessionClosed(DurableMessage):
    """The last message of a session."""

    type: Literal["session.closed"] = "session.closed"
    session_id: str
    reason: Literal["client", "idle", "disconnected"]
    frames: int
    """Decided frames."""


class ErrorMessage(DurableMessage):
    """A message was refused. The stream stays open."""

    type: Literal["error"] = "error"
    code: str
    message: str
    field: str | None = None
    seq: int | None = None
    """The refused frame, which may be sent again or left out."""

    @classmethod
    def of(cls, error: ProspectError, seq: int | None = None) -> "ErrorMessage":
        return cls(code=error.code, message=str(error), field=error.field, seq=seq)

    @classmethod
    def defect(cls, seq: int | None = None) -> "ErrorMessage":
        """The error for an exception that the client did not cause; the server's log has its stack trace."""
        return cls(code="internal", message="the server met a defect of its own at this message", seq=seq)


# Bodies of HTTP answers ---------------------------------------------------------------------------------------


class FrameOutcome(DecidedFrame):
    """Everything decided at one frame, for HTTP."""

    state: StateMap
    delta: str = ""
    utterance: str | None = None


class FramesResponse(ServerModel):
    """One outcome for each frame of the request, in the same order."""

    frames: list[FrameOutcome]


class SessionView(ServerModel):
    """What is known of a session now."""

    session_id: str
    goal: str
    steps: list[str]
    thresholds: Thresholds | None = None
    state: StateMap
    next_seq: int
    waiting: int
    """Frames taken and not yet decided."""
    counters: dict[str, int]


class TranscriptEntry(ServerModel):
    """What happened at one frame."""

    frame: int
    time: float
    """Seconds in the session at which the frame was decided."""
    user: tuple[str, ...] = ()
    """What the user said before the frame."""
    delta: str = ""
    utterance: str | None = None

    @classmethod
    def of(cls, frame: int, events: FrameEvents) -> Self:
        delta = format_delta(events.delta)
        return cls(frame=frame, time=decision_time(frame), user=events.user, delta=delta, utterance=events.utterance)


class Transcript(ServerModel):
    """What was said in a session and what changed, by frame."""

    session_id: str
    complete: bool
    """False if the first events are forgotten (`streaming.history_events`)."""
    entries: list[TranscriptEntry]


class ModelCard(ServerModel):
    """What a client must know about the served model."""

    name: str
    version: str = ""
    """`models:/NAME/VERSION`, or the model's folder."""
    fingerprint: str
    fps: float
    tokens_per_frame: int
    dim: int
    """D of an embedding [tokens_per_frame, dim]."""
    accepts_images: bool
    """False if the model's encoder is missing: send embeddings."""


class StepTimes(ServerModel):
    """Seconds of an engine's steps that had work."""

    p50: float
    p95: float


class LastMove(ServerModel):
    """The last time that a session went to another process."""

    seconds_ago: float
    seconds: float
    """For which nothing was decided."""
    lost_frames: int


class ServerStatus(ServerModel):
    """How a running deployment is: of all gateways, as the one that answers knows them."""

    health: Literal["ok", "degraded", "unavailable"]
    """`degraded`: the session store is away; `unavailable`: no engine answers."""
    ready: bool
    """Whether a new session would be taken."""
    reason: str = ""
    """Why not."""
    model: ModelCard | None = None
    """None while no engine answers."""
    gateways: int
    engines: int
    encoders: int
    sessions: int
    capacity: int
    """Sessions that have a place."""
    decisions_per_second: float
    """Of the last ten seconds."""
    step_seconds: StepTimes
    """Of the last ten seconds and the slowest engine; 0 without steps."""
    dropped_frames: int
    """Since the gateways started."""
    moves: int
    """Likewise."""
    last_move: LastMove | None = None
    store: Literal["none", "ok", "away"]
    store_lag_seconds: float
    """Age of the oldest change that is not written."""


ServerMessage = Annotated[
    SessionCreated
    | FrameDecision
    | StateUpdated
    | ResponseDelta
    | ResponseDone
    | FrameDropped
    | SessionRefreshed
    | SessionGoingAway
    | ResponseCancelled
    | SessionMoved
    | SessionClosed
    | ErrorMessage,
    Field(discriminator="type"),
]
