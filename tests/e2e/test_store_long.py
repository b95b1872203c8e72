"""The session store of a served application is away while sessions stream: they speak on, and nothing is lost."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from tests.e2e.sessions import NAMES, NUM_FRAMES, Conversation, Server, same
from tests.serving.clients import until
from tests.serving.models import write_model
from tests.serving.postgres import PostgresServer, postgres  # noqa: F401  # a fixture

pytestmark = [pytest.mark.e2e, pytest.mark.long]

NOTICED_WITHIN_S = 90.0


@pytest.fixture(scope="module")
def server(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    write_model(folder / "model")
    server = Server(folder)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def undisturbed(server: Server) -> dict[str, Conversation]:
    return server.stream()


class Absence:
    """Takes the store away while all sessions stream, and brings it back a few decisions of the first one later.

    Args:
        server: whose store it is.
        begin: takes it away.
        end: brings it back.
        said: the database's words for it, a pattern, to somebody who wants to open another session meanwhile.
    """

    def __init__(self, server: Server, begin: Callable[[], object], end: Callable[[], object], said: str) -> None:
        self._server, self._begin, self._end, self._said = server, begin, end, said
        self.decided: list[int] = []
        """Frames of the first session that were decided when the store went, and when it came back."""

    def __call__(self, heard: Conversation) -> None:
        if not self.decided and len(heard.decisions) == 5:
            self._begin()
            self.decided.append(len(heard.decisions))
            until(lambda: self._health() == {"degraded"}, NOTICED_WITHIN_S)
            self._expect_refusal()
        elif len(self.decided) == 1 and len(heard.decisions) == 14:
            assert self._health() == {"degraded"}
            self.bring_back()
            self.decided.append(len(heard.decisions))
            until(lambda: self._health() == {"ok"}, NOTICED_WITHIN_S)

    def bring_back(self) -> None:
        """End the absence, unless it is over."""
        if len(self.decided) == 1:
            self._end()

    def _health(self) -> set[str]:
        """What the gateways say, of which some request will meet each."""
        answers = [httpx.get(f"{self._server.url}/healthz", timeout=30, trust_env=False) for _ in range(8)]
        return {answer.json().get("status", answer.text) for answer in answers}

    def _expect_refusal(self) -> None:
        refused = httpx.post(f"{self._server.url}/v1/sessions", json={"goal": "Tea"}, timeout=30, trust_env=False)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (503, "unavailable")
        assert error["message"].startswith("serving.store (")
        assert re.search(self._said, error["message"])
        assert "\n" not in error["message"]


def outlive(server: Server, undisturbed: dict[str, Conversation], absence: Absence) -> None:
    """Assert that sessions speak on without their store, keep their owners, and are in it when it is back."""
    server.wait_until_whole()
    try:
        spoken = server.stream(absence)
    finally:
        absence.bring_back()  # where something failed
    assert absence.decided == [5, 14]
    same(spoken, undisturbed)
    for name in NAMES:
        session_id = spoken[name].session_id
        until(lambda session_id=session_id: server.row(session_id).status == "closed")
        assert server.row(session_id).epoch == 1, "nobody else has claimed it"
        assert [event.number for event in server.store.events(session_id)] == [n for n, _ in spoken[name].durable]
        assert server.row(session_id).position["decided"] == NUM_FRAMES - 1


@pytest.mark.parametrize("small_disk", ["16m"], indirect=True)
def test_the_disk_is_full(server: Server, undisturbed: dict[str, Conversation], small_disk: Path) -> None:
    server.deploy(f"serving.store=sqlite:///{small_disk}/sessions.db")
    filler = small_disk / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                return

    outlive(server, undisturbed, Absence(server, fill, filler.unlink, "database or disk is full"))


class Damage:
    """Overwrites what SQLite has written, but for the first page, and puts it back.

    A commit on top of it makes the other processes look at the file.
    """

    def __init__(self, server: Server, file: Path, stack: ExitStack) -> None:
        self._server = server
        places = {file: 4096, file.with_name(f"{file.name}-wal"): 32}
        # A file that is closed here would take the locks of this process's own connection along.
        self._files = {stack.enter_context(each.open("r+b", buffering=0)): place for each, place in places.items()}
        self._contents: dict[int, tuple[int, bytes]] = {}

    def begin(self) -> None:
        with self._server.store._database.transaction() as connection:  # nobody else writes meanwhile
            connection.execute(text("UPDATE prospect_sessions SET touched = touched"))
            for file, place in self._files.items():
                content = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, place)
                self._contents[file.fileno()] = (place, content)
                os.pwrite(file.fileno(), b"\xff" * len(content), place)

    def end(self) -> None:
        for number, (place, content) in self._contents.items():
            os.pwrite(number, content, place)


def test_the_database_file_is_damaged(server: Server, undisturbed: dict[str, Conversation], tmp_path: Path) -> None:
    file = tmp_path / "sessions.db"
    server.deploy(f"serving.store=sqlite:///{file}")
    with ExitStack() as stack:
        damage = Damage(server, file, stack)
        outlive(server, undisturbed, Absence(server, damage.begin, damage.end, "malformed|not a database"))


def test_postgresql_is_restarted(
    server: Server,
    undisturbed: dict[str, Conversation],
    postgres: PostgresServer,  # noqa: F811
) -> None:
    server.deploy(f"serving.store={postgres.new_database()}")
    outlive(server, undisturbed, Absence(server, postgres.stop, postgres.start, "connection failed"))
