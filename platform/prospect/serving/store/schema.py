"""The rows of the session store, and the tables that hold them.

JSON is kept as text, because PostgreSQL's own type reorders keys and refuses NUL characters. Names begin with
`prospect_`, so that the tables can share a database with MLflow's.
"""

import json
import zlib
from dataclasses import dataclass, field
from typing import Any

import msgpack
from sqlalchemy import (
    BigInteger,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
)

OPEN, CLOSED, ERASED = "open", "closed", "erased"
"""Values of `status`. An erased session keeps its id and epoch: a new one of this id gets the next epoch, so that the
owner of the erased one cannot write to it.
"""


@dataclass(frozen=True)
class SessionRow:
    """What the store knows of a session."""

    session_id: str
    epoch: int
    """Rises with every owner."""
    owner: str
    """Address of the gateway that owns it."""
    engine: str
    """Address of the engine that has it; empty if none does."""
    status: str
    """`open` or `closed`."""
    opened: dict[str, Any]
    """The client's `session.update`."""
    tokens: tuple[str, ...]
    """Valid resume tokens."""
    position: dict[str, Any]
    state: dict[str, str]
    mark: dict[str, Any] | None
    base: dict[str, Any] | None
    """May hold bytes anywhere."""
    last_event: int
    touched: float
    """Unix seconds; of a closed session, when it was closed."""
    key_id: str | None = None
    """Of the API key that opened it; None where keys were off."""


@dataclass(frozen=True)
class KeyRow:
    """An API key, without its secret."""

    key_id: str
    name: str
    """What its owner calls it."""
    digest: str
    """SHA-256 of the secret, as hexadecimal digits."""
    created: float
    """Unix seconds."""
    revoked: float | None = None
    """Unix seconds; None while it is good."""


@dataclass(frozen=True)
class EventRow:
    """A durable message of a session."""

    number: int
    """1, 2, 3, ... within the session."""
    source: int | None
    """Number of the engine's event that it came from."""
    payload: str
    """The message as JSON."""


@dataclass(frozen=True)
class FrameRow:
    """A decided frame of a session."""

    frame: int
    seq: int
    events: dict[str, Any]
    """What stood at the frame: `user`, `delta` and `utterance`."""
    embedding: bytes | None
    """float16; None where `serving.durability` is `events`."""
    number: int | None = None
    """Of the engine's event that decided it; None with `decision`."""
    decision: str | None = None
    """What its client was told, as JSON; None where `serving.durability` is `events`."""


@dataclass
class SessionChange:
    """What has to be written of one session under its epoch."""

    session_id: str
    epoch: int
    columns: dict[str, Any] = field(default_factory=dict)
    """New values of any fields of `SessionRow` but `session_id` and `epoch`."""
    events: list[EventRow] = field(default_factory=list)
    frames: list[FrameRow] = field(default_factory=list)
    frames_from: int | None = None
    """Frames before this one are deleted: a new base holds them, and no client asks for their decisions."""


class DamagedValueError(Exception):
    """A stored value that cannot be read back."""


class JsonText(TypeDecorator[Any]):
    """A value as JSON; None is NULL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        try:
            return None if value is None else json.loads(value)
        except ValueError as error:
            raise DamagedValueError("a value of JSON cannot be read back") from error


class Packed(TypeDecorator[Any]):
    """A value with bytes in it as compressed msgpack; None is NULL, and tuples come back as lists."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes | None:
        return None if value is None else zlib.compress(msgpack.packb(value, unicode_errors="surrogatepass"), 1)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if value is None:
            return None
        try:
            packed = zlib.decompress(value)
            return msgpack.unpackb(packed, strict_map_key=False, unicode_errors="surrogatepass")
        except (zlib.error, ValueError) as error:
            raise DamagedValueError("a compressed value cannot be read back") from error


metadata = MetaData()

sessions = Table(
    "prospect_sessions",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("owner", Text, nullable=False),
    Column("engine", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("opened", JsonText, nullable=False),
    Column("tokens", JsonText, nullable=False),
    Column("position", JsonText, nullable=False),
    Column("state", JsonText, nullable=False),
    Column("mark", JsonText),
    Column("base", Packed),
    Column("last_event", BigInteger, nullable=False),
    Column("touched", Double, nullable=False),
    Column("key_id", Text),
    Index("prospect_sessions_owner", "owner", "status"),
    Index("prospect_sessions_touched", "status", "touched"),
    Index("prospect_sessions_key", "key_id", "status"),
)

keys = Table(
    "prospect_keys",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("revoked", Double),
)


def _session_id() -> Column[str]:
    return Column("session_id", Text, ForeignKey(sessions.c.session_id, ondelete="CASCADE"), primary_key=True)


events = Table(
    "prospect_events",
    metadata,
    _session_id(),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("source", BigInteger),
    Column("payload", Text, nullable=False),
)

frames = Table(
    "prospect_frames",
    metadata,
    _session_id(),
    Column("frame", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("events", JsonText, nullable=False),
    Column("embedding", LargeBinary),
    Column("number", BigInteger),
    Column("decision", Text),
)
