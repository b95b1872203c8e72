"""Messages that a client sends over a WebSocket, and the bodies of its HTTP requests."""

import base64
import binascii
from typing import Annotated, Literal
from uuid import uuid4

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from prospect.dialogue.prompt import StrategyName
from prospect.dialogue.recipe import read_recipe
from prospect.protocol.fields import StateMap

MAX_IMAGE_BYTES = 8 * 2**20
"""Most bytes of a picture or an embedding; as base64 it fits into a message of `MAX_MESSAGE_BYTES`."""
MAX_MESSAGE_BYTES = 16 * 2**20
"""Most bytes of a message of a stream, or of the body of a request."""
MAX_FRAMES = 256
"""Most frames of one request."""
MAX_STEPS = 1000
"""Most steps of a recipe."""
MAX_RECIPE = 40_000
"""Most characters of all steps together."""
MAX_KNOWLEDGE = 20_000
MAX_GOAL = 2_000
MAX_TEXT = 4_000
"""Most characters of one text of the user."""
MAX_NAME = 200
"""Most characters of a name, a fingerprint or a handle."""
MAX_PTS = 1e9
"""Seconds of the latest frame: 31 years."""
MAX_SEQ = 2**53
"""The largest integer that every reader of JSON keeps."""


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
"""Bytes, written as base64 in JSON."""

Name = Annotated[str, Field(max_length=MAX_NAME)]
Probability = Annotated[float, Field(ge=0, le=1)]
SESSION_ID = r"^[A-Za-z0-9_-]{1,64}$"
SessionId = Annotated[str, Field(pattern=SESSION_ID)]


class ClientModel(BaseModel):
    """A message that refuses unknown fields, so that a typing error does not pass for a default."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class ThresholdsMessage(ClientModel):
    """Probabilities above which the assistant acts; a threshold left out is the model's own."""

    speak: Probability | None = None
    update: Probability | None = None


class SessionUpdate(ClientModel):
    """Open a session, or continue one."""

    type: Literal["session.update"] = "session.update"
    session_id: SessionId | None = None
    """Chosen by the server if left out. Anybody who knows it can reach the session over HTTP."""
    goal: Annotated[str, Field(max_length=MAX_GOAL)] = ""
    steps: Annotated[tuple[Annotated[str, Field(max_length=MAX_RECIPE)], ...], Field(max_length=MAX_STEPS)] = ()
    """Names of the recipe's steps, S1 first; may be empty."""
    recipe: Annotated[str, Field(max_length=MAX_RECIPE)] = ""
    """Instead of `steps`: a text whose numbered lines are the steps; its other lines are knowledge too."""
    knowledge: Annotated[str, Field(max_length=MAX_KNOWLEDGE)] = ""
    dataset: Name = ""
    """Training data set that is most like the stream: its calibrated thresholds apply. Left out, or unknown to the
    model's calibration: those of all data sets together."""
    context_strategy: StrategyName | None = None
    """How the context is rebuilt when it is full (docs/engine.md); left out: the server's."""
    thresholds: ThresholdsMessage = ThresholdsMessage()
    keep: bool = False
    """Whether the session outlives its WebSocket, until it is resumed, closed or idle too long."""
    resume: Name | None = None
    """Handle from `session.created` of the session to continue; all fields but the next two must be left out."""
    last_event: Annotated[int, Field(ge=0, le=MAX_SEQ)] | None = None
    """With `resume`: number of the last durable message that the client has; every later one is sent again."""
    decided: Annotated[int, Field(ge=-1, le=MAX_SEQ)] | None = None
    """With `resume`: seq of the last frame whose decision the client has, -1 for none; later ones are sent again, as
    far as they are kept."""

    @field_validator("steps")
    @classmethod
    def _short_enough(cls, steps: tuple[str, ...]) -> tuple[str, ...]:
        if (length := sum(map(len, steps))) > MAX_RECIPE:
            raise ValueError(f"have {length:,} characters together; send at most {MAX_RECIPE:,}")
        return steps

    @model_validator(mode="after")
    def _one_recipe(self) -> "SessionUpdate":
        if self.recipe and self.steps:
            raise ValueError("recipe and steps say the same twice; send one of them")
        found = len(read_recipe(self.recipe).steps) if self.recipe else 0
        if self.recipe and not found:
            raise ValueError("recipe has no numbered lines, such as `1. Boil water.`; send steps instead")
        if found > MAX_STEPS:
            raise ValueError(f"recipe has {found:,} steps; send at most {MAX_STEPS:,}")
        return self

    @model_validator(mode="after")
    def _resumes_alone(self) -> "SessionUpdate":
        if self.resume is None:
            if self.last_event is not None or self.decided is not None:
                raise ValueError("last_event and decided belong to resume")
            return self
        fields = type(self).model_fields
        cursor = ("type", "resume", "last_event", "decided")
        others = [n for n in fields if n not in cursor and getattr(self, n) != fields[n].default]
        if others:
            raise ValueError(f"resume continues a session as it is; leave out {', '.join(others)}")
        return self

    def completed(self, session_id: str | None = None) -> "SessionUpdate":
        """Return the message with the steps of its recipe, and with a session id: its own, `session_id`, or a new one.

        The gateway chooses it: the id decides which engine has the session.
        """
        given = dict(self) | {"session_id": self.session_id or session_id or uuid4().hex}
        if self.recipe:
            found = read_recipe(self.recipe)
            knowledge = "\n".join(filter(None, (self.knowledge, *found.rest)))
            given |= {"recipe": "", "steps": found.steps, "knowledge": knowledge[:MAX_KNOWLEDGE]}
        return SessionUpdate.model_validate(given)


class EmbeddingMessage(ClientModel):
    """A frame's features, encoded by the client."""

    data: Base64
    """float16, little endian, row by row."""
    shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    """[I, D]: I tokens of D features."""
    fingerprint: Name
    """Fingerprint of the encoder; it must be the model's (`GET /v1/model`)."""

    @model_validator(mode="after")
    def _complete(self) -> "EmbeddingMessage":
        expected = 2 * self.shape[0] * self.shape[1]
        if len(self.data) != expected:
            raise ValueError(f"{len(self.data)} bytes do not hold float16 of shape {list(self.shape)}: {expected} do")
        return self

    @classmethod
    def of(cls, embedding: np.ndarray, fingerprint: str) -> "EmbeddingMessage":
        """Make a message from features [I, D] or, for one token, [D]."""
        rows = np.atleast_2d(embedding).astype("<f2")
        return cls(data=rows.tobytes(), shape=(rows.shape[0], rows.shape[1]), fingerprint=fingerprint)

    def array(self) -> np.ndarray:
        """Return the features, float16 [I, D]."""
        return np.frombuffer(self.data, "<f2").reshape(self.shape)


class FrameAppend(ClientModel):
    """Send the next frame: a picture or an embedding."""

    type: Literal["input_frame.append"] = "input_frame.append"
    seq: Annotated[int, Field(ge=0, le=MAX_SEQ)] | None = None
    """0, 1, 2, ... in the session. Left out, it is the next one, and a message sent twice is taken twice."""
    pts: Annotated[float, Field(ge=0, le=MAX_PTS)] | None = None
    """Time of the picture in the client's stream, seconds; it must lie in a later frame than the last one."""
    image: Base64 | None = None
    """JPEG, PNG or WebP."""
    embedding: EmbeddingMessage | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "FrameAppend":
        if (self.image is None) == (self.embedding is None):
            raise ValueError("a frame carries either image or embedding")
        return self


class TextAppend(ClientModel):
    """Send a text of the user; it joins the next frame."""

    type: Literal["input_text.append"] = "input_text.append"
    text: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
    id: Name | None = None
    """A text with the id of one that waits for its frame is that one, sent again, and is taken once."""


class StatePatch(ClientModel):
    """Correct the tracked state."""

    type: Literal["state.patch"] = "state.patch"
    state: Annotated[StateMap, Field(max_length=MAX_STEPS)]


class EventAck(ClientModel):
    """The client has the durable messages up to `event`; the server need not keep them."""

    type: Literal["event.ack"] = "event.ack"
    event: Annotated[int, Field(ge=0, le=MAX_SEQ)]


class SessionClose(ClientModel):
    """Close the session once the frames sent before are decided."""

    type: Literal["session.close"] = "session.close"


class FramesRequest(ClientModel):
    """Several frames in order: a body of `POST /v1/sessions/ID/frames`."""

    frames: Annotated[tuple[FrameAppend, ...], Field(min_length=1, max_length=MAX_FRAMES)]


ClientMessage = Annotated[
    SessionUpdate | FrameAppend | TextAppend | StatePatch | EventAck | SessionClose, Field(discriminator="type")
]
