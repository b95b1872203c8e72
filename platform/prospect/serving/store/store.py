"""The session store: sessions, durable messages and frames in one database, each session fenced by its epoch."""

import time
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Table, and_, bindparam, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from prospect.errors import SessionError, session_error
from prospect.serving.access.limits import too_many_sessions
from prospect.serving.session_ids import name_of
from prospect.serving.store.database import Database
from prospect.serving.store.schema import (
    CLOSED,
    ERASED,
    OPEN,
    EventRow,
    FrameRow,
    SessionChange,
    SessionRow,
    events,
    frames,
    keys,
    sessions,
)

_EMPTY = SessionRow("", 0, "", "", ERASED, {}, (), {}, {}, None, None, 0, 0.0)
_PROBE = ""
"""Of no session."""
_FRAME = [field.name for field in fields(FrameRow)]
FENCE_SECONDS = 86_400.0
"""How long the id and epoch of an erased session are kept: a process that was frozen since then is gone."""


class Fenced(SessionError):  # noqa: N818  # named after its code
    """Another owner has the session under a later epoch."""

    code = "fenced"


class Store:
    """Sessions by id; belongs to one thread.

    Each method is one transaction and raises `StoreUnavailable` where the database fails; the same store works again
    once the database does.

    Args:
        url: `sqlite:////absolute/path.db`, whose folder is created, or `postgresql://user@host/database`.

    Raises:
        ConfigError: the URL is wrong, or the database cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)

    def create(self, row: SessionRow, at_most: int | None = None) -> int:
        """Insert a session and return its epoch: 1, or one more than that of the closed session it replaces.

        Args:
            row: the session.
            at_most: sessions that its key may have open; None: any number.

        Raises:
            SessionError: `session_exists`: a session with this id is open; `too_many_sessions`.
        """
        with self._database.transaction() as connection:
            if row.key_id is not None and at_most is not None:
                _require_room(connection, row.key_id, at_most)
            this = sessions.c.session_id == row.session_id
            found = connection.execute(
                select(sessions.c.epoch, sessions.c.status).where(this).with_for_update()
            ).first()
            if found is None:
                values = _columns(row) | {"session_id": row.session_id, "epoch": 1}
                inserted = connection.execute(self._insert_into(sessions).on_conflict_do_nothing(), values)
                if inserted.rowcount:
                    return 1
            if found is None or found.status == OPEN:
                name = name_of(row.session_id)
                message = f"session_id ({name}) must be new: a session with this id is open; resume it"
                raise session_error("session_exists", message, "session_id")
            epoch = int(found.epoch) + 1
            _delete_contents(connection, this)
            connection.execute(update(sessions).where(this).values(_columns(row) | {"epoch": epoch}))
            return epoch

    def find(self, session_id: str) -> SessionRow | None:
        """The session with this id, unless it is unknown or erased."""
        with self._database.transaction(reading=True) as connection:
            query = select(sessions).where(sessions.c.session_id == session_id, sessions.c.status != ERASED)
            found = connection.execute(query).first()
            return None if found is None else _session(found)

    def claim(self, session_id: str, seen: int, owner: str) -> int:
        """Make `owner` the owner and return the new epoch, `seen` + 1.

        Raises:
            Fenced: the session's epoch is not `seen`.
        """
        with self._database.transaction() as connection:
            claim = update(sessions).where(*_owned(session_id, seen)).values(epoch=seen + 1, owner=owner)
            claimed = connection.execute(claim)
            if not claimed.rowcount:
                message = f"session_id ({session_id}) must be claimed under its present epoch, which {seen} is not"
                raise Fenced(message, field="session_id")
            return seen + 1

    def write(self, changes: Sequence[SessionChange]) -> set[str]:
        """Write all changes at once, but nothing of those whose epoch is not their session's.

        An event number that is there already keeps its event; a frame that is there is replaced. So the same changes
        can be written again.

        Returns:
            Ids of the sessions that were fenced.
        """
        changes = sorted(changes, key=lambda change: change.session_id)  # two writers lock in the same order
        with self._database.transaction() as connection:
            fenced, written = set[str](), list[SessionChange]()
            for change in changes:
                if _update(connection, change):
                    written.append(change)
                else:
                    fenced.add(change.session_id)
            self._insert(connection, events, [(change.session_id, row) for change in written for row in change.events])
            self._insert(connection, frames, [(change.session_id, row) for change in written for row in change.frames])
            for change in written:
                if change.frames_from is not None:
                    this = and_(frames.c.session_id == change.session_id, frames.c.frame < change.frames_from)
                    connection.execute(delete(frames).where(this))
        return fenced

    def epochs(self, owner: str) -> dict[str, int]:
        """Epochs of an owner's open sessions, by id."""
        with self._database.transaction(reading=True) as connection:
            query = select(sessions.c.session_id, sessions.c.epoch)
            found = connection.execute(query.where(sessions.c.owner == owner, sessions.c.status == OPEN))
            return {row.session_id: row.epoch for row in found}

    def events(self, session_id: str, after: int = 0) -> list[EventRow]:
        """A session's events with a number above `after`, in order."""
        with self._database.transaction(reading=True) as connection:
            query = select(events.c.number, events.c.source, events.c.payload).order_by(events.c.number)
            found = connection.execute(query.where(events.c.session_id == session_id, events.c.number > after))
            return [EventRow(*row) for row in found]

    def frames(self, session_id: str) -> list[FrameRow]:
        """A session's frames, in order."""
        with self._database.transaction(reading=True) as connection:
            query = select(*(frames.c[name] for name in _FRAME)).order_by(frames.c.frame)
            return [FrameRow(*row) for row in connection.execute(query.where(frames.c.session_id == session_id))]

    def erase(self, session_id: str) -> bool:
        """Erase everything of a session and fence its owner; whether there was one."""
        with self._database.transaction() as connection:
            erased = _erase(connection, sessions.c.session_id == session_id)
            return bool(erased)

    def expire(self, closed_before: float, touched_before: float) -> int:
        """Erase the sessions that were closed before one time, and the open ones not touched since another.

        Args:
            closed_before: unix seconds.
            touched_before: unix seconds.

        Returns:
            How many were erased.
        """
        old_closed = and_(sessions.c.status == CLOSED, sessions.c.touched < closed_before)
        old_open = and_(sessions.c.status == OPEN, sessions.c.touched < touched_before)
        with self._database.transaction() as connection:
            old_fences = and_(sessions.c.status == ERASED, sessions.c.touched < time.time() - FENCE_SECONDS)
            connection.execute(delete(sessions).where(old_fences))
            return _erase(connection, or_(old_closed, old_open))

    def ping(self) -> None:
        """Ask the database something."""
        with self._database.transaction(reading=True) as connection:
            connection.execute(select(sessions.c.epoch).limit(1))

    def probe(self) -> None:
        """Write something and take it back: a full disk can be read."""
        with self._database.transaction() as connection:
            values = _columns(_EMPTY) | {"session_id": _PROBE, "epoch": 0}
            connection.execute(self._insert_into(sessions).on_conflict_do_nothing(), values)
            connection.execute(delete(sessions).where(sessions.c.session_id == _PROBE))

    def close(self) -> None:
        self._database.close()

    def _insert_into(self, table: Table) -> Any:
        """An `INSERT` that can say what happens on a conflict."""
        return (sqlite if self._database.dialect == "sqlite" else postgresql).insert(table)

    def _insert(self, connection: Connection, table: Table, rows: list[tuple[str, EventRow | FrameRow]]) -> None:
        if not rows:
            return
        statement = self._insert_into(table)
        if table is events:
            statement = statement.on_conflict_do_nothing()
        else:
            new = {name: statement.excluded[name] for name in _FRAME if name != "frame"}
            statement = statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=new)
        connection.execute(statement, [{"session_id": session_id, **vars(row)} for session_id, row in rows])


def _require_room(connection: Connection, key_id: str, at_most: int) -> None:
    """Refuse another session of a key that has as many as it may; its other openings wait for this one."""
    connection.execute(select(keys.c.key_id).where(keys.c.key_id == key_id).with_for_update())
    of_key = sessions.c.key_id == key_id, sessions.c.status == OPEN
    if connection.execute(select(func.count()).select_from(sessions).where(*of_key)).scalar_one() >= at_most:
        raise too_many_sessions(at_most)


def _columns(row: SessionRow) -> dict[str, Any]:
    return {name: value for name, value in vars(row).items() if name not in ("session_id", "epoch")}


def _session(row: Row[Any]) -> SessionRow:
    values = row._asdict()
    return SessionRow(**values | {"tokens": tuple(values["tokens"])})


def _owned(session_id: Any, epoch: Any) -> tuple[ColumnElement[bool], ...]:
    """A session as long as it has this epoch and is not erased."""
    return sessions.c.session_id == session_id, sessions.c.epoch == epoch, sessions.c.status != ERASED


_UPDATE = update(sessions).where(*_owned(bindparam("this"), bindparam("owned")))
"""Writes the columns that it is given; made once, since making a statement takes longer than running it."""


def _update(connection: Connection, change: SessionChange) -> bool:
    """Write a change's columns, and lock the session until the end; False where its epoch is another."""
    values = {**change.columns, "epoch": change.epoch}  # locks it where there are no columns
    return bool(connection.execute(_UPDATE, values | {"this": change.session_id, "owned": change.epoch}).rowcount)


def _erase(connection: Connection, which: ColumnElement[bool]) -> int:
    """Leave only id and epoch of some sessions; how many there were."""
    empty = _columns(_EMPTY) | {"touched": time.time()}
    erased = connection.execute(update(sessions).where(which, sessions.c.status != ERASED).values(empty))
    if erased.rowcount:
        _delete_contents(connection, sessions.c.status == ERASED)
    return erased.rowcount


def _delete_contents(connection: Connection, which: ColumnElement[bool]) -> None:
    """Delete the events and frames of some sessions."""
    ids = select(sessions.c.session_id).where(which)
    for table in (events, frames):
        connection.execute(delete(table).where(table.c.session_id.in_(ids)))
