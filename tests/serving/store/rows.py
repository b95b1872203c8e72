"""Rows that the tests of the session store write, and what they ask its database behind its back."""

from typing import Any

from sqlalchemy import text

from prospect.serving.store import EventRow, FrameRow, SessionRow, Store

ROW = SessionRow(
    session_id="a",
    epoch=0,
    owner="gateway-1",
    engine="engine-1",
    status="open",
    opened={"goals": ["Tea \u2615", "\0"], "steps": [{"id": "S2"}, {"id": "S1"}]},
    tokens=("one", "two"),
    position={"next_seq": 0, "pts": 0.1},
    state={"S2": "completed", "S1": "not_started"},
    mark=None,
    base={"frames": [{"embedding": b"\0\xff", "seq": 1}], "text": "caf\u00e9", "odd": b""},
    last_event=0,
    touched=1_700_000_000.123456,
)


def execute(store: Store, statement: str, **values: Any) -> list[Any]:
    """The rows of a statement; none where it has none."""
    with store._database.transaction() as connection:
        done = connection.execute(text(statement), values)
        return list(done) if done.returns_rows else []


def event(number: int, payload: str = "{}") -> EventRow:
    return EventRow(number, number + 10, payload)


def frame(number: int, embedding: bytes | None = b"\1\2") -> FrameRow:
    return FrameRow(number, number + 5, {"user": ["Hi"], "delta": "", "utterance": None}, embedding)


def numbers(store: Store, session_id: str = "a") -> list[int]:
    return [each.number for each in store.events(session_id)]
