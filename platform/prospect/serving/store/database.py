"""An SQLite file or a PostgreSQL server by URL: opened, checked, migrated, and used in transactions."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from prospect.errors import ConfigError, ProspectError
from prospect.messages import first_line, unknown
from prospect.serving.store.migrations import NewerSchemaError, is_current, migrate
from prospect.serving.store.schema import DamagedValueError

FIELD = "serving.store"

BUSY_SECONDS = 5.0
"""How long SQLite waits for another process that writes."""
FROZEN_SECONDS = 10.0
"""After which PostgreSQL ends the transaction of a process that does not go on, whose locks others wait for."""
STATEMENT_SECONDS = 30.0

_DRIVERS = {
    "sqlite": "sqlite", "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg", "postgresql+psycopg": "postgresql+psycopg",
}  # fmt: skip
_NOTICE = {
    "connect_timeout": "5", "keepalives_idle": "5", "keepalives_interval": "2", "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}  # fmt: skip
"""Parameters of libpq, with which a server whose machine is gone is noticed within seconds; the URL may set others."""
_MIGRATION_LOCK = int.from_bytes(b"prospect", "big")
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class StoreUnavailable(ProspectError):  # noqa: N818  # named after its code
    """The session store does not answer, is full, locked or damaged; the same call may succeed later."""

    code = "unavailable"


class Database:
    """An open database that has the tables of this version.

    Attributes:
        name: for errors: the file, or the URL without a password.
        dialect: `sqlite` or `postgresql`.

    Raises:
        ConfigError: the URL is wrong, or the database cannot be used.
    """

    def __init__(self, url: str) -> None:
        parsed = _parsed(url)
        self.dialect = parsed.get_backend_name()
        self._file = Path(parsed.database or "") if self.dialect == "sqlite" else None
        self.name = str(self._file or parsed.set(drivername="postgresql", query={}))
        try:
            self._engine = _sqlite(parsed) if self._file else _postgresql(parsed)
            self._reading = self._engine.execution_options(reading=True)
            self._open()
        except (DBAPIError, OSError, NewerSchemaError, ArgumentError, ValueError) as error:
            raise ConfigError(self._mistake(error), field=FIELD) from error

    @contextmanager
    def transaction(self, reading: bool = False) -> Iterator[Connection]:
        """Commit what the block does, or nothing of it where it raises.

        Raises:
            StoreUnavailable: the database failed; the next transaction connects again.
        """
        try:
            self._require_file()
            with (self._reading if reading else self._engine).begin() as connection:
                yield connection
        except (DataError, IntegrityError):  # defects of ours, which no waiting mends
            raise
        except (DBAPIError, PoolTimeoutError, DamagedValueError) as error:
            self._engine.dispose()
            raise StoreUnavailable(f"{FIELD} ({self.name}) is unavailable: {_reason(error)}", field=FIELD) from error

    def close(self) -> None:
        self._engine.dispose()

    def _open(self) -> None:
        """Make the file, check it, and migrate."""
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._reading.begin() as connection:
            if self._file is not None:
                self._require_sound(connection)
            current = is_current(connection)
        if not current:
            with self._engine.begin() as connection:  # on SQLite this takes the lock of those who write
                if self.dialect == "postgresql":
                    connection.execute(text("SET LOCAL statement_timeout = 0"))
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
                if not is_current(connection):
                    migrate(connection)
        self._identity = self._file and _identity(self._file)

    def _require_sound(self, connection: Connection) -> None:
        found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if found != "ok":
            raise ConfigError(self._damage(found), field=FIELD)

    def _require_file(self) -> None:
        """SQLite would go on writing to a file that was removed, and all of it would be lost with the process."""
        if self._file is None:
            return
        try:
            identity = _identity(self._file)
        except OSError as error:
            message = f"{FIELD} ({self.name}) was removed; put it back, or restart the server to begin with a new one"
            raise StoreUnavailable(message, field=FIELD) from error
        if identity != self._identity:
            self._engine.dispose()
            self._identity = identity

    def _mistake(self, error: Exception) -> str:
        """The sentence for a database that cannot be opened."""
        subject = f"{FIELD} ({self.name}) must be"
        match error:
            case NewerSchemaError():
                return (
                    f"{subject} of a schema that this version of prospect knows, and is of the later {error}; upgrade "
                    "prospect, or name another database"
                )
            case OSError():
                return f"{subject} a file that can be created: {first_line(error)}"
        if getattr(getattr(error, "orig", None), "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
            return self._damage(_reason(error))
        remedy = "see to its folder" if self._file else "start the server, or correct the URL"
        return f"{subject} a database that can be opened: {_reason(error)}; {remedy}"

    def _damage(self, found: str) -> str:
        found = " ".join(found.removeprefix("*** in database main ***").split())
        remedy = "restore it from a backup, or move it away to begin with a new one"
        return f"{FIELD} ({self.name}) must be a sound SQLite database, and is damaged ({found}); {remedy}"


def _parsed(given: str) -> URL:
    """A URL with the driver that is installed; errors never repeat what could be a password.

    Raises:
        ConfigError: it is not a URL of SQLite or PostgreSQL, or names no absolute path.
    """
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        message = f"{FIELD} must be a URL, for example sqlite:////data/sessions.db or postgresql://user@host/database"
        raise ConfigError(message, field=FIELD) from None
    if url.drivername not in _DRIVERS:
        raise ConfigError(unknown("database", url.drivername, ["sqlite", "postgresql"], of=FIELD), field=FIELD)
    url = url.set(drivername=_DRIVERS[url.drivername])
    if url.drivername == "sqlite":
        if url.host or url.username or url.query or not Path(url.database or "").is_absolute():
            message = f"{FIELD} must be an absolute path and no more for SQLite, as in sqlite:////data/sessions.db"
            raise ConfigError(message, field=FIELD)
        return url
    if given.partition("?")[0].count("@") > 1:  # the rest of a password would be taken for the host
        raise ConfigError(f"{FIELD}: an @ in a user's name or password must be written as %40", field=FIELD)
    return url.update_query_dict({name: value for name, value in _NOTICE.items() if name not in url.query})


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # transactions begin below, and not where Python's module would begin them
        connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")
        _use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten, and not left in free pages

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Two processes that begin with a new file collide here, where SQLite itself does not wait."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def _postgresql(url: URL) -> Engine:
    engine = create_engine(url, hide_parameters=True, pool_pre_ping=True, isolation_level="READ COMMITTED")

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.execute(f"SET statement_timeout = {STATEMENT_SECONDS * 1000:.0f}")
        connection.execute(f"SET idle_in_transaction_session_timeout = {FROZEN_SECONDS * 1000:.0f}")
        connection.commit()

    return engine


def _identity(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_dev, found.st_ino


def _reason(error: Exception) -> str:
    """The database's own words, in one line."""
    said = str(error.orig if isinstance(error, DBAPIError) else error)
    several = said.partition("All failures were:\n")[2].lstrip("- ")  # psycopg, of a name with several addresses
    return first_line(Exception(several or said))
