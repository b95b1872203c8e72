"""Keys as a gateway knows them: new and revoked ones within seconds, and all of them while the store is away."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from prospect.errors import SessionError
from prospect.serving.access import keyring
from prospect.serving.access.keyring import Keyring
from prospect.serving.access.keys import new_key
from prospect.serving.store import KeyTable, StoreUnavailable


@pytest.fixture
def table(tmp_path) -> KeyTable:
    return KeyTable(f"sqlite:///{tmp_path}/sessions.db")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "KNOWN_FOR_S", 0.05)


async def code(call: Awaitable[object]) -> str:
    try:
        await call
        return "good"
    except SessionError as error:
        return error.code


def test_new_keys_are_known_and_revoked_ones_refused(table: KeyTable) -> None:
    async def story() -> None:
        ring = Keyring(table)
        key, row = new_key("tablet")
        assert await code(ring.id_of(key)) == "unauthorized"
        table.add(row)
        await asyncio.sleep(0.06)
        assert await ring.id_of(key) == row.key_id
        for wrong in ("", "x", key[:-1], key.upper(), f"{key} ", f"pk_{row.key_id}_{'A' * 43}"):
            assert await code(ring.id_of(wrong)) == "unauthorized"
        table.revoke(row.key_id, time.time())
        await asyncio.sleep(0.06)
        assert await code(ring.id_of(key)) == "unauthorized"
        assert not await ring.has(row.key_id)

    asyncio.run(story())


@pytest.mark.parametrize("slow", [False, True])
def test_the_keys_are_good_on_while_the_store_is_away(
    table: KeyTable, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    def away() -> None:
        if slow:
            time.sleep(0.5)
        raise StoreUnavailable("serving.store is unavailable")

    async def story() -> None:
        key, row = new_key("tablet")
        table.add(row)
        known, new = Keyring(table), Keyring(table)
        await known.id_of(key)
        monkeypatch.setattr(keyring, "ANSWERS_WITHIN_S", 0.2)
        monkeypatch.setattr(table, "rows", away)
        await asyncio.sleep(0.06)
        assert await known.id_of(key) == row.key_id
        assert await code(new.id_of(key)) == "unavailable", "it has never seen them"
        monkeypatch.undo()

    asyncio.run(story())


def test_a_warning_says_how_old_the_keys_are(
    table: KeyTable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Since the last time that the store answered, however often it was asked since."""

    def away() -> None:
        raise StoreUnavailable("serving.store is unavailable")

    clock = SimpleNamespace(monotonic=lambda: clock.now, now=1000.0)
    monkeypatch.setattr(keyring, "time", clock)

    async def story() -> None:
        known = Keyring(table)
        await code(known.id_of("x"))
        monkeypatch.setattr(table, "rows", away)
        for clock.now in (1010.0, 1020.0, 1030.0):
            await code(known.id_of("x"))
        await code(Keyring(table).id_of("x"))

    asyncio.run(story())
    ages = [record.getMessage().partition(": ")[0] for record in caplog.records]
    assert ages == [*(f"the keys are those of {age} s ago" for age in (10, 20, 30)), "no keys are known"]


def test_many_requests_ask_the_store_once(table: KeyTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "KNOWN_FOR_S", 60.0)
    asked: list[int] = []
    rows: Callable[[], list] = table.rows
    monkeypatch.setattr(table, "rows", lambda: asked.append(1) or rows())

    async def story() -> None:
        ring = Keyring(table)
        await asyncio.gather(*(code(ring.id_of("x")) for _ in range(50)))

    asyncio.run(story())
    assert len(asked) == 1
