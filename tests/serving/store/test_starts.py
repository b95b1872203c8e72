"""Stores of several processes that start, write and claim at once, and the schema that they bring a database to."""

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from setuptools import find_namespace_packages
from sqlalchemy import create_engine, text

from prospect.errors import ConfigError
from prospect.serving.store import Fenced, KeyTable, SessionChange, Store, StoreUnavailable, database
from prospect.serving.store.migrations import VERSION_TABLE, _config
from prospect.serving.store.schema import metadata
from tests.conftest import REPOSITORY
from tests.serving.postgres import PostgresServer
from tests.serving.store.rows import ROW, event, execute, numbers

STARTED = """
import sys
from prospect.serving.store import Store
for url in sys.argv[1:]:
    print("ready", flush=True)
    sys.stdin.readline()
    Store(url).ping()
print("opened", flush=True)
"""


def start(urls: list[str]) -> subprocess.Popen[str]:
    """A process that opens one database for each line it reads."""
    return subprocess.Popen(
        [sys.executable, "-c", STARTED, *urls], cwd=REPOSITORY / "platform", text=True, bufsize=1,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def test_two_processes_start_on_a_new_database_at_once(new_url: Callable[[], str]) -> None:
    urls = [new_url() for _ in range(4)]
    processes = [start(urls), start(urls)]
    for _ in urls:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
    assert [process.communicate()[0] for process in processes] == ["opened\n"] * 2


def test_stores_of_one_process_start_on_new_databases_at_once(new_url: Callable[[], str]) -> None:
    """Alembic keeps what it does in a global variable."""
    urls = [new_url(), new_url()] * 2
    stores: list[Store] = []
    threads = [threading.Thread(target=lambda url=url: stores.append(Store(url))) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4
    for store in stores:
        store.ping()
        store.close()


def test_two_gateways_write_at_once(url: str) -> None:
    stores = [Store(url), Store(url)]
    ids = [[f"{number}{letter}" for letter in "abcd"] for number in range(2)]
    failures: list[Exception] = []

    def serve(store: Store, mine: list[str]) -> None:
        try:
            for session_id in mine:
                store.create(replace(ROW, session_id=session_id))
            for number in range(1, 26):
                assert store.write([SessionChange(session_id, 1, {}, [event(number)]) for session_id in mine]) == set()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=serve, args=each) for each in zip(stores, ids, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert all(numbers(stores[0], session_id) == list(range(1, 26)) for mine in ids for session_id in mine)


def test_of_two_gateways_that_claim_at_once_one_is_the_owner(url: str) -> None:
    stores = [Store(url) for _ in range(4)]
    stores[0].create(ROW)
    gate, claimed, fenced = threading.Barrier(4), list[int](), list[Fenced]()

    def claim(store: Store, number: int) -> None:
        gate.wait()
        try:
            store.claim("a", 1, f"gateway-{number}")
            claimed.append(number)
        except Fenced as error:
            fenced.append(error)

    threads = [threading.Thread(target=claim, args=(store, number)) for number, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = claimed
    assert len(fenced) == 3
    assert stores[0].epochs(f"gateway-{winner}") == {"a": 2}


def test_a_gateway_that_froze_while_it_wrote_keeps_nobody_waiting(
    postgres: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = postgres.new_database()
    with monkeypatch.context() as patch:
        patch.setattr(database, "FROZEN_SECONDS", 0.3)
        frozen = Store(url)
    other = Store(url)
    other.create(ROW)

    def write_slowly() -> None:
        with frozen._database.transaction() as connection:
            connection.execute(text("UPDATE prospect_sessions SET last_event = 99"))
            assert other.claim("a", 1, "gateway-2") == 2

    with pytest.raises(StoreUnavailable):
        write_slowly()
    assert other.find("a") == replace(ROW, epoch=2, owner="gateway-2")
    assert frozen.write([SessionChange("a", 1, {"last_event": 99})]) == {"a"}


def test_a_newer_database_is_refused(url: str) -> None:
    store = Store(url)
    store.create(ROW)
    execute(store, f"UPDATE {VERSION_TABLE} SET version_num = '99'")
    with pytest.raises(ConfigError, match="is of the later 99; upgrade prospect, or name another database"):
        Store(url)
    assert store.find("a") is not None


def test_the_migrations_make_the_tables_of_the_schema(store: Store) -> None:
    with store._database.transaction(reading=True) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []


def test_sessions_of_before_there_were_keys_are_nobodys(url: str) -> None:
    """A database of the first version; its sessions go on where keys are off."""
    Store(url).close()
    with create_engine(url.replace("postgresql:", "postgresql+psycopg:")).begin() as connection:
        for table in ("frames", "events", "sessions", "keys", "store_version"):
            connection.execute(text(f"DROP TABLE prospect_{table}"))
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "1")
        later = ("tokens", "opened", "base", "key_id")
        values = {name: value for name, value in vars(ROW).items() if name not in later}
        values |= {"tokens": "[]", "opened": "{}", "position": "{}", "state": "{}"}
        connection.execute(
            text(f"INSERT INTO prospect_sessions ({', '.join(values)}) VALUES (:{', :'.join(values)})"), values
        )
    found = Store(url).find("a")
    assert found is not None
    assert found.key_id is None
    assert KeyTable(url).rows() == []


def test_the_migrations_are_in_the_wheel() -> None:
    assert "prospect.serving.store.migrations.versions" in find_namespace_packages(str(REPOSITORY / "platform"))


def test_a_database_that_another_program_migrates_as_well_is_left_to_it(url: str) -> None:
    """MLflow's has Alembic's version in the table that Alembic uses by default, and tables of many names."""
    if url.startswith("sqlite"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir()
    with create_engine(url.replace("postgresql:", "postgresql+psycopg:")).begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('mlflow')"))
        connection.execute(text("CREATE TABLE sessions (x INTEGER)"))
    store = Store(url)
    store.create(ROW)
    assert Store(url).find("a") == replace(ROW, epoch=1)
    assert execute(store, "SELECT version_num FROM alembic_version") == [("mlflow",)]
