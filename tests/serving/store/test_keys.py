"""The table of API keys, and sessions that belong to one."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from prospect.errors import SessionError
from prospect.serving.access.keys import new_key
from prospect.serving.store import KeyTable, Store
from tests.serving.store.rows import ROW, execute


def test_a_key_is_kept_as_a_digest_alone(url: str) -> None:
    store, table = Store(url), KeyTable(url)
    key, row = new_key("the kitchen's tablet")
    table.add(row)
    [stored] = execute(store, "SELECT * FROM prospect_keys")
    assert not [value for value in stored if str(value) in key.split("_", 2)[2]]
    assert KeyTable(url).rows() == table.rows() == [row]


def test_a_key_is_revoked_once_and_for_good(url: str) -> None:
    table, others = KeyTable(url), KeyTable(url)
    rows = [new_key(name)[1] for name in ("one", "two")]
    for row in rows:
        table.add(row)
    assert not table.revoke("0" * 12, time.time())
    assert table.revoke(rows[0].key_id, 5.0)
    assert not others.revoke(rows[0].key_id, 6.0)
    assert others.rows() == [replace(rows[0], revoked=5.0), rows[1]]


def test_a_key_has_no_more_sessions_than_it_may_however_many_come_at_once(new_url: Callable[[], str]) -> None:
    url = new_url()
    row = new_key("one")[1]
    KeyTable(url).add(row)

    def opens(number: int) -> str:
        store = Store(url)  # each gateway has one of its own
        try:
            store.create(replace(ROW, session_id=f"{row.key_id}.{number}", key_id=row.key_id), at_most=3)
            return "open"
        except SessionError as error:
            return error.code
        finally:
            store.close()

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(opens, range(8)))
    assert (said.count("open"), said.count("too_many_sessions")) == (3, 5)


def test_sessions_of_others_and_closed_ones_do_not_count(store: Store) -> None:
    for number in range(3):
        store.create(replace(ROW, session_id=f"a.{number}", key_id="a"), at_most=3)
        store.create(replace(ROW, session_id=str(number)), at_most=3)
    with pytest.raises(SessionError, match="3 sessions of this key are open"):
        store.create(replace(ROW, session_id="a.3", key_id="a"), at_most=3)
    store.create(replace(ROW, session_id="b.0", key_id="b"), at_most=3)
    store.erase("a.1")
    store.create(replace(ROW, session_id="a.3", key_id="a"), at_most=3)
    found = store.find("a.3")
    assert found is not None
    assert found.key_id == "a"
