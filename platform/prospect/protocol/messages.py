"""All messages of the session protocol (docs/protocol.md), to import from one place."""

from typing import get_args

from prospect.protocol.client_messages import (
    MAX_MESSAGE_BYTES,
    ClientMessage,
    EmbeddingMessage,
    EventAck,
    FrameAppend,
    FramesRequest,
    SessionClose,
    SessionUpdate,
    StatePatch,
    TextAppend,
    ThresholdsMessage,
)
from prospect.protocol.fields import StateMap
from prospect.protocol.server_messages import (
    CAPABILITIES,
    TAKEN_OVER,
    DecidedFrame,
    DurableMessage,
    ErrorMessage,
    FrameDecision,
    FrameDropped,
    FrameOutcome,
    FramesResponse,
    ModelCard,
    ResponseDelta,
    ResponseDone,
    ServerMessage,
    SessionClosed,
    SessionCreated,
    SessionGoingAway,
    SessionMoved,
    SessionRefreshed,
    SessionView,
    StateUpdated,
    Transcript,
    TranscriptEntry,
    state_map,
)

CLIENT_MESSAGES = get_args(get_args(ClientMessage)[0])
"""Classes of the messages that a client sends on a stream."""
SERVER_MESSAGES = get_args(get_args(ServerMessage)[0])
"""Classes of the messages that a server sends on a stream."""

__all__ = [
    "CAPABILITIES",
    "CLIENT_MESSAGES",
    "MAX_MESSAGE_BYTES",
    "SERVER_MESSAGES",
    "TAKEN_OVER",
    "ClientMessage",
    "DecidedFrame",
    "DurableMessage",
    "EmbeddingMessage",
    "ErrorMessage",
    "EventAck",
    "FrameAppend",
    "FrameDecision",
    "FrameDropped",
    "FrameOutcome",
    "FramesRequest",
    "FramesResponse",
    "ModelCard",
    "ResponseDelta",
    "ResponseDone",
    "ServerMessage",
    "SessionClose",
    "SessionClosed",
    "SessionCreated",
    "SessionGoingAway",
    "SessionMoved",
    "SessionRefreshed",
    "SessionUpdate",
    "SessionView",
    "StateMap",
    "StatePatch",
    "StateUpdated",
    "TextAppend",
    "ThresholdsMessage",
    "Transcript",
    "TranscriptEntry",
    "state_map",
]
