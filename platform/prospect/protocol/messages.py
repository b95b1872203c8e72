"""The messages of the session protocol (docs/protocol.md).

A client's message with an unknown field is refused, so that a typing error does not pass for a default. A
client ignores the fields of the server's messages that it does not know, so that a server may be newer.
"""

import base64
import binascii
from typing import Annotated, Any, Literal
from uuid import uuid4

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from prospect.dialogue.state import TaskState
from prospect.errors import ProspectError
from prospect.streaming.types import Silence

MAX_IMAGE_BYTES = 16 * 2**20


def _from_base64(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise ValueError(f"is not base64: {str(error).lower()}") from None


Base64 = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    PlainSerializer(lambda data: base64.b64encode(data).decode(), return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
    Field(max_length=MAX_IMAGE_BYTES),
]
"""Bytes; base64 in JSON."""

StepLabel = Literal["not_started", "in_progress", "completed"]
StateMap = dict[str, StepLabel]
"""State by step id, in recipe order: {"S1": "completed", "S2": "in_progress"}."""
Probability = Annotated[float, Field(ge=0, le=1)]
SessionId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


def state_map(state: TaskState) -> StateMap:
    labels: tuple[Any, ...] = state.labels
    return {f"S{number}": label for number, label in enumerate(labels, 1)}


class _FromClient(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class _FromServer(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


# Client -> server ----------------------------------------------------------------------------------------------


class ThresholdsMessage(_FromClient):
    """Probabilities above which the assistant acts; what is left out is the model's own."""

    speak: Probability | None = None
    update: Probability | None = None


class SessionUpdate(_FromClient):
    """Opens a session, or continues one."""

    type: Literal["session.update"] = "session.update"
    session_id: SessionId | None = None
    """Chosen by the server if left out. Whoever knows it can reach the session over HTTP."""
    goal: str = ""
    steps: tuple[str, ...] = ()
    """Names of the recipe's steps, S1 first; may be empty."""
    knowledge: str = ""
    dataset: str = ""
    """Name of a training dataset that the stream is most like: its calibrated thresholds are taken. Without, or with
    one that the model was not calibrated on, those of all datasets together."""
    thresholds: ThresholdsMessage = ThresholdsMessage()
    keep: bool = False
    """Whether the session outlives the WebSocket that opened it, until it is resumed, closed or idle too long."""
    resume: str | None = None
    """Handle from `session.created`: continue that session; all other fields are left out then."""

    @model_validator(mode="after")
    def _resumes_alone(self) -> "SessionUpdate":
        if self.resume is None:
            return self
        fields = type(self).model_fields
        others = [n for n in fields if n not in ("type", "resume") and getattr(self, n) != fields[n].default]
        if others:
            raise ValueError(f"resume continues a session as it is; leave out {', '.join(others)}")
        return self

    def with_id(self) -> "SessionUpdate":
        """The gateway chooses the id: it decides which engine the session lives on."""
        return self if self.session_id else self.model_copy(update={"session_id": uuid4().hex})


class EmbeddingMessage(_FromClient):
    """A frame's features, encoded by the client."""

    data: Base64
    """float16, little endian, row by row."""
    shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    """[I, D]: tokens a frame, features a token."""
    fingerprint: str
    """Of the encoder; it must be the model's (`GET /v1/model`)."""

    @model_validator(mode="after")
    def _complete(self) -> "EmbeddingMessage":
        expected = 2 * self.shape[0] * self.shape[1]
        if len(self.data) != expected:
            raise ValueError(f"{len(self.data)} bytes do not hold float16 of shape {list(self.shape)}: {expected} do")
        return self

    @classmethod
    def of(cls, embedding: np.ndarray, fingerprint: str) -> "EmbeddingMessage":
        """From [I, D] or, for one token, [D]."""
        rows = np.atleast_2d(embedding).astype("<f2")
        return cls(data=rows.tobytes(), shape=(rows.shape[0], rows.shape[1]), fingerprint=fingerprint)

    def array(self) -> np.ndarray:
        """float16 [I, D]."""
        return np.frombuffer(self.data, "<f2").reshape(self.shape)


class FrameAppend(_FromClient):
    """The next frame: a picture or an embedding."""

    type: Literal["input_frame.append"] = "input_frame.append"
    seq: Annotated[int, Field(ge=0)] | None = None
    """0, 1, 2, ... by session. Left out: the next one; a message sent twice is then taken twice."""
    pts: Annotated[float, Field(ge=0, le=1e15)] | None = None
    """Time of the picture in the client's stream, seconds. If given, each must lie in a later frame than the last."""
    image: Base64 | None = None
    """JPEG or PNG."""
    embedding: EmbeddingMessage | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "FrameAppend":
        if (self.image is None) == (self.embedding is None):
            raise ValueError("a frame carries either image or embedding")
        return self


class TextAppend(_FromClient):
    """What the user says; it joins the next frame that is pushed."""

    type: Literal["input_text.append"] = "input_text.append"
    text: Annotated[str, Field(min_length=1)]


class StatePatch(_FromClient):
    """Corrects the tracked state: somebody knows better."""

    type: Literal["state.patch"] = "state.patch"
    state: StateMap


class SessionClose(_FromClient):
    """Ends the session after the frames that were sent before it."""

    type: Literal["session.close"] = "session.close"


ClientMessage = Annotated[
    SessionUpdate | FrameAppend | TextAppend | StatePatch | SessionClose, Field(discriminator="type")
]

# Server -> client ----------------------------------------------------------------------------------------------


class SessionCreated(_FromServer):
    """The session is open."""

    type: Literal["session.created"] = "session.created"
    session_id: str
    resume: str
    """Handle with which another stream continues the session; good once, the other stream gets a new one."""
    fps: float
    fingerprint: str
    tokens_per_frame: int
    next_seq: int = 0
    state: StateMap


class FrameDecision(_FromServer):
    """A frame is decided. What was generated at it came before (`response.delta`) or follows at once."""

    type: Literal["decision"] = "decision"
    seq: int
    frame: int
    """Index in the session's stream; decided at (frame + 1) / fps seconds."""
    p_speak: float
    p_update: float
    readout: StateMap | None = None
    """The most probable state, read off this frame without generating text."""
    silence: Silence | None = None
    """Why nothing was said: `threshold`, `cooldown` or `hysteresis`; null where something was."""


class StateUpdated(_FromServer):
    """The tracked state changed."""

    type: Literal["state.updated"] = "state.updated"
    state: StateMap
    delta: str = ""
    """`S1->complete; S2->start`; empty where the client patched the state."""
    seq: int | None = None
    frame: int | None = None


class ResponseDelta(_FromServer):
    """A piece of the utterance that is being generated at `frame`."""

    type: Literal["response.delta"] = "response.delta"
    seq: int
    frame: int
    text: str


class ResponseDone(_FromServer):
    """The whole utterance of `frame`."""

    type: Literal["response.done"] = "response.done"
    seq: int
    frame: int
    text: str


class FrameDropped(_FromServer):
    """The frame was not taken: too many are waiting. The stream goes on with the next seq."""

    type: Literal["frame.dropped"] = "frame.dropped"
    seq: int
    reason: str


class SessionRefreshed(_FromServer):
    """The context was full, or the state was patched, and it is rebuilt before `frame`."""

    type: Literal["session.refreshed"] = "session.refreshed"
    frame: int
    tokens_before: int
    tokens_after: int
    summary: str | None = None
    """Of the progress, where the model was asked for one."""
    oracle: bool = False
    """Whether it was told a reference's state then; in evaluation only."""


class SessionGoingAway(_FromServer):
    """This server stops; continue elsewhere with the handle."""

    type: Literal["session.going_away"] = "session.going_away"
    resume: str
    reason: str


class SessionClosed(_FromServer):
    """The last message of a session."""

    type: Literal["session.closed"] = "session.closed"
    session_id: str
    reason: Literal["client", "idle", "disconnected"]
    frames: int
    """Frames decided."""


class ErrorMessage(_FromServer):
    """A message that was not accepted. The stream stays open."""

    type: Literal["error"] = "error"
    code: str
    message: str
    field: str | None = None
    seq: int | None = None
    """Of the frame at fault, which may be sent again or left out."""

    @classmethod
    def of(cls, error: ProspectError, seq: int | None = None) -> "ErrorMessage":
        return cls(code=error.code, message=str(error), field=error.field, seq=seq)


ServerMessage = Annotated[
    SessionCreated
    | FrameDecision
    | StateUpdated
    | ResponseDelta
    | ResponseDone
    | FrameDropped
    | SessionRefreshed
    | SessionGoingAway
    | SessionClosed
    | ErrorMessage,
    Field(discriminator="type"),
]

# HTTP only -----------------------------------------------------------------------------------------------------


class FramesRequest(_FromClient):
    """Several frames at once, in order."""

    frames: Annotated[tuple[FrameAppend, ...], Field(min_length=1)]


class FrameOutcome(_FromServer):
    """Everything decided at one frame."""

    seq: int
    frame: int
    p_speak: float
    p_update: float
    state: StateMap
    delta: str = ""
    utterance: str | None = None
    readout: StateMap | None = None
    silence: Silence | None = None


class FramesResponse(_FromServer):
    """One outcome for each frame of the request, in its order."""

    frames: list[FrameOutcome]


class SessionView(_FromServer):
    """A session as it stands."""

    session_id: str
    goal: str
    steps: list[str]
    state: StateMap
    next_seq: int
    waiting: int
    """Frames taken and not decided."""
    counters: dict[str, int]


class ModelCard(_FromServer):
    """What a client has to know about the served model."""

    name: str
    fingerprint: str
    fps: float
    tokens_per_frame: int
    dim: int
    """D of an embedding [tokens_per_frame, dim]."""
    accepts_images: bool
    """False where the model's encoder is not there: send embeddings."""
