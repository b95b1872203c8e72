"""The keys that open this server, as the store had them a moment ago."""

import asyncio
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor

from prospect.errors import SessionError, session_error
from prospect.messages import first_line
from prospect.serving.access.keys import is_secret_of, split_key
from prospect.serving.store import KeyRow, KeyTable, StoreUnavailable

log = logging.getLogger(__name__)

KNOWN_FOR_S = 1.0
"""Seconds after which the store is asked again: so late are new keys known, and revoked ones refused."""
ANSWERS_WITHIN_S = 1.0
"""Seconds for which a request waits for the store; then the keys that were there before are good on."""
FIRST_WITHIN_S = 10.0
"""Seconds that a request waits for the first reading, without which nobody is let in."""


class Keyring:
    """Belongs to one event loop; the table runs on a thread of its own.

    While the store is away, the keys that it had are good on: nobody can revoke one meanwhile.

    Args:
        table: of the keys.
    """

    def __init__(self, table: KeyTable) -> None:
        self._table = table
        self._thread = ThreadPoolExecutor(1, "keys")
        self._rows: dict[str, KeyRow] | None = None
        self._asked_at = self._read_at = -math.inf
        self._reading: asyncio.Task[None] | None = None

    async def id_of(self, key: str) -> str:
        """Return the id of a key.

        Raises:
            SessionError: `unauthorized`: it is none, or was revoked; `unavailable`: the store has never answered.
        """
        rows = await self._good()
        key_id, secret = split_key(key) or ("", "")
        if not is_secret_of(rows.get(key_id), secret):
            raise wrong_key()
        return key_id

    async def has(self, key_id: str) -> bool:
        """Whether the key of this id is good still."""
        return key_id in await self._good()

    async def _good(self) -> dict[str, KeyRow]:
        """The keys that are not revoked, by id."""
        if time.monotonic() - self._asked_at >= KNOWN_FOR_S:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read())
            within = FIRST_WITHIN_S if self._rows is None else ANSWERS_WITHIN_S
            await asyncio.wait([self._reading], timeout=within)
        if self._rows is None:
            raise session_error("unavailable", "the keys cannot be read: the session store is away; try again")
        return self._rows

    async def _read(self) -> None:
        try:
            rows = await asyncio.get_running_loop().run_in_executor(self._thread, self._table.rows)
            self._rows = {row.key_id: row for row in rows if row.revoked is None}
            self._read_at = time.monotonic()
        except StoreUnavailable as error:
            age = f"the keys are those of {time.monotonic() - self._read_at:.0f} s ago"
            log.warning("%s: %s", "no keys are known" if self._rows is None else age, first_line(error))
        self._asked_at = time.monotonic()


def wrong_key() -> SessionError:
    """Make the error for a key that opens nothing."""
    message = "authorization: this API key is unknown or was revoked; `prospect keys add NAME` makes one"
    return session_error("unauthorized", message, "authorization")


def no_key() -> SessionError:
    """Make the error for a request without a key."""
    message = "authorization: an API key is missing; send `Authorization: Bearer KEY`"
    return session_error("unauthorized", message, "authorization")
