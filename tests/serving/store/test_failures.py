"""A session store whose database is away, damaged, full, locked or wrongly named: one sentence, and back again."""

import shutil
import sqlite3
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from prospect.errors import ConfigError
from prospect.serving.store import SessionChange, Store, StoreUnavailable, database
from tests.serving.postgres import PostgresServer
from tests.serving.store.rows import ROW, event, execute, frame, numbers


def test_a_restarted_server_is_found_again(postgres: PostgresServer) -> None:
    store = Store(postgres.new_database().replace("prospect@", "prospect:sesame@"))
    store.create(ROW)
    postgres.stop()
    try:
        for call in (store.ping, lambda: store.find("a"), lambda: store.write([SessionChange("a", 1)])):
            with pytest.raises(StoreUnavailable, match="is unavailable: connection failed") as caught:
                call()
            assert caught.value.code == "unavailable"
            assert "\n" not in str(caught.value)
            assert "sesame" not in "".join(traceback.format_exception(caught.value))
    finally:
        postgres.start()
    store.ping()
    assert store.write([SessionChange("a", 1, {"last_event": 1}, [event(1)])]) == set()
    assert numbers(store) == [1]


def test_a_write_whose_connection_is_cut_off_is_not_written_by_half(postgres: PostgresServer) -> None:
    store = Store(postgres.new_database())
    store.create(ROW)
    change = SessionChange("a", 1, {"last_event": 1}, [event(1)])

    def write() -> None:
        with store._database.transaction() as connection:
            connection.execute(text("UPDATE prospect_sessions SET last_event = 1"))
            postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'test_%'")
            connection.execute(text("INSERT INTO prospect_events VALUES ('a', 1, 1, '{}')"))

    with pytest.raises(StoreUnavailable):
        write()
    assert store.find("a") == replace(ROW, epoch=1)
    assert store.write([change]) == set()
    assert numbers(store) == [1]


def test_a_server_that_does_not_answer_is_named(postgres: PostgresServer) -> None:
    with pytest.raises(ConfigError, match=r'database "nowhere" does not exist; start the server, or correct the URL'):
        Store(f"postgresql://{postgres.address}/nowhere")
    with pytest.raises(ConfigError, match="refused; start the server") as caught:
        Store("postgresql://user:sesame@localhost:1/database")
    assert caught.value.field == "serving.store"
    assert str(caught.value).startswith("serving.store (postgresql://user:***@localhost:1/database) must be")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "sesame", "user:sesame@host/database", "postgresql://user:sesame@host:port/database",
        "postgresql://user:a@sesame@host/database", "postgresql://user:a@ses/ame@host:1/database",
        "mysql://user:sesame@host/database", "postgresql+asyncpg://user:sesame@host/database",
        "postgresql://user:sesame@localhost:1/database", "postgresql://user@localhost:1/database?password=sesame",
        "postgresql://user:sesame@localhost:1/database?nonsense=1", "sqlite://user:sesame@host/sessions.db",
        "postgresql://user:sesame@localhost:1/database?connect_timeout=x",
    ],
)  # fmt: skip
def test_no_error_shows_a_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Store(url)
    shown = "".join(traceback.format_exception(caught.value))
    assert "sesame" not in shown
    assert "ses/ame" not in shown
    assert str(caught.value).count("\n") == 0
    assert caught.value.field == "serving.store"


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///:memory:", "sqlite:///sessions.db", "sqlite:////x.db?timeout=soon", "sqlite://host//x.db"],
)
def test_a_file_must_be_named_by_its_absolute_path(url: str) -> None:
    with pytest.raises(ConfigError, match="must be an absolute path and no more"):
        Store(url)


def test_a_folder_that_cannot_be_made_is_named(file: Path) -> None:
    file.write_text("")
    with pytest.raises(ConfigError, match="must be a file that can be created"):
        Store(f"sqlite:///{file}/sessions.db")
    with pytest.raises(ConfigError, match="unable to open database file; see to its folder"):
        Store(f"sqlite:///{file.parent}")


def test_a_damaged_value_is_told_and_the_others_are_read(store: Store) -> None:
    for session_id in "ab":
        store.create(replace(ROW, session_id=session_id))
    execute(store, "UPDATE prospect_sessions SET base = :base WHERE session_id = 'a'", base=b"x\x9c?")
    with pytest.raises(StoreUnavailable, match="a compressed value cannot be read back"):
        store.find("a")
    assert store.find("b") is not None


def fill(file: Path, events: int) -> None:
    """With events of 2 kB."""
    store = Store(f"sqlite:///{file}")
    store.create(ROW)
    store.write([SessionChange("a", 1, {}, [event(number, "x" * 2000) for number in range(1, events + 1)])])
    store.close()


@pytest.mark.parametrize("damage", ["beginning", "middle", "end"])
def test_a_damaged_file_is_named_at_the_start(file: Path, damage: str) -> None:
    fill(file, 100)
    content = bytearray(file.read_bytes())
    match damage:
        case "beginning":
            content[:100] = b"\xff" * 100
        case "middle":
            content[50_000:60_000] = b"\xff" * 10_000
        case "end":
            del content[len(content) // 2 :]
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="must be a sound SQLite database, and is damaged") as caught:
        Store(f"sqlite:///{file}")
    assert str(caught.value).startswith(f"serving.store ({file}) must")
    assert str(caught.value).endswith("; restore it from a backup, or move it away to begin with a new one")
    assert "\n" not in str(caught.value)
    file.rename(file.with_suffix(".damaged"))
    Store(f"sqlite:///{file}").ping()


def test_a_file_that_is_damaged_while_it_is_open_is_told(file: Path) -> None:
    fill(file, 2000)  # more than SQLite keeps in memory
    store = Store(f"sqlite:///{file}")
    content = file.read_bytes()
    with file.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xff" * (len(content) - 4096))
    with pytest.raises(StoreUnavailable, match="malformed"):
        store.events("a")
    with file.open("r+b") as opened:
        opened.write(content)
    assert len(store.events("a")) == 2000


@pytest.mark.parametrize("small_disk", ["1m"], indirect=True)
def test_a_full_disk_loses_nothing_and_is_written_on_when_there_is_room(small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 300_000)
    store = Store(f"sqlite:///{small_disk}/sessions.db")
    store.create(ROW)
    written = 0

    def write_next() -> None:
        nonlocal written
        number = written + 1
        store.write([SessionChange("a", 1, {"last_event": number}, [event(number, "x" * 20_000)], [frame(number)])])
        written = number

    def write_on() -> None:
        while True:
            write_next()

    with pytest.raises(StoreUnavailable, match="is unavailable: database or disk is full") as caught:
        write_on()
    assert "\n" not in str(caught.value)
    assert written > 3
    found = store.find("a")
    assert found is not None
    assert found.last_event == written
    assert numbers(store) == list(range(1, written + 1))
    filler.unlink()
    write_next()
    assert numbers(store) == list(range(1, written + 1))
    store.close()


def test_a_locked_file_is_unavailable_until_it_is_let_go(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    store = Store(f"sqlite:///{file}")
    store.create(ROW)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="database is locked"):
        store.claim("a", 1, "gateway-2")
    assert store.find("a") == replace(ROW, epoch=1), "whoever only reads does not wait"
    other.execute("ROLLBACK")
    assert store.claim("a", 1, "gateway-2") == 2


def test_nothing_is_written_to_a_file_that_was_removed(file: Path, tmp_path: Path) -> None:
    """SQLite would keep writing, and everything would be lost with the process."""
    store = Store(f"sqlite:///{file}")
    store.create(ROW)
    kept = tmp_path / "kept"
    kept.mkdir()
    for part in sorted(tmp_path.glob("sessions.db*")):
        shutil.move(part, kept)
    with pytest.raises(StoreUnavailable, match="was removed; put it back, or restart the server"):
        store.write([SessionChange("a", 1, {}, [event(1)])])
    assert not file.exists()
    for part in kept.iterdir():
        shutil.copy(part, tmp_path)
    assert store.write([SessionChange("a", 1, {}, [event(1)])]) == set()
    assert numbers(Store(f"sqlite:///{file}")) == [1]


def test_sqlite_keeps_a_log_ahead_and_its_foreign_keys(file: Path) -> None:
    store = Store(f"sqlite:///{file}")
    with store._database.transaction(reading=True) as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 5000}


def test_what_is_erased_is_in_the_file_no_more(file: Path) -> None:
    """SQLite may leave it in pages that are free, as it was built."""
    store = Store(f"sqlite:///{file}")
    store.create(ROW)
    store.write([SessionChange("a", 1, {}, [event(1, '"what somebody said"' + "x" * 20_000)])])
    store.close()  # writes what the log has to the file
    assert b"what somebody said" in file.read_bytes()
    store.erase("a")
    store.close()
    assert b"what somebody said" not in file.read_bytes()
