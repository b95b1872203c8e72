from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prospect.serving.store import Store
from tests.serving.postgres import PostgresServer
from tests.serving.store.rows import execute


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Makes the URL of an empty database."""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        return server.new_database
    return lambda: f"sqlite:///{tmp_path_factory.mktemp('store')}/folder/sessions.db"


@pytest.fixture
def url(new_url: Callable[[], str]) -> str:
    return new_url()


@pytest.fixture(scope="module")
def lasting_store(new_url: Callable[[], str]) -> Iterator[Store]:
    """One for examples that choose ids of their own."""
    store = Store(new_url())
    yield store
    store.close()


@pytest.fixture
def store(lasting_store: Store) -> Store:
    """An empty one."""
    execute(lasting_store, "DELETE FROM prospect_sessions")
    return lasting_store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Of an SQLite database."""
    return tmp_path / "sessions.db"
