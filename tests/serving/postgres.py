"""A PostgreSQL server that tests stop and start, of the programs that are installed on this machine."""

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from scripts.cluster import free_port
from tests.needs import skip_without
from tests.postgres import PROGRAMS


class PostgresServer:
    """Keeps its data in `folder`; the user `prospect` may do everything, without a password.

    Attributes:
        address: `user@host:port`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._data = folder, f"{folder}/data"
        self._numbers = itertools.count()
        self._user = unprivileged_user()
        if self._user is not None:
            shutil.chown(folder, self._user)
        port = free_port()
        self.address = f"prospect@127.0.0.1:{port}"
        self._settings = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories= -c fsync=off"
        self._run("initdb", "-D", self._data, "-U", "prospect", "--auth=trust", "--no-sync", "--no-instructions")
        self.start()

    def start(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-l", f"{self._folder}/log", "-w", "-o", self._settings, "start")

    def stop(self) -> None:
        """Without waiting for anybody, as a crash would."""
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "stop")

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql://{self.address}/{name}"

    def execute(self, statement: str) -> None:
        with psycopg.connect(f"postgresql://{self.address}/postgres", autocommit=True) as connection:
            connection.execute(statement)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [PROGRAMS[-1] / program, *arguments], cwd=self._folder, user=self._user, check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip


def unprivileged_user() -> str | None:
    """The server refuses to run as root."""
    if os.geteuid() != 0:
        return None
    return next(user.pw_name for name in ("postgres", "nobody") for user in pwd.getpwall() if user.pw_name == name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for all tests."""
    skip_without("postgresql", (PROGRAMS[-1] / "initdb").is_file())
    folder = Path(tempfile.mkdtemp(prefix="prospect-store-"))
    try:
        server = PostgresServer(folder)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
