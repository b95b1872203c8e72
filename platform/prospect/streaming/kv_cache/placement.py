"""Which sessions have their keys and values in the pool, and which are parked."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from prospect.errors import SessionError
from prospect.streaming.kv_cache.block_table import BlockTable
from prospect.streaming.kv_cache.parking import Parked, ParkingLot, copy_out, put_back
from prospect.streaming.kv_cache.pool import PagePool

log = logging.getLogger(__name__)

Activity = Literal["working", "waiting", "idle"]
"""A session in the middle of something, one with frames that nobody has begun with, one without any."""


class CachePlacement:
    """Each resident session is promised the pages of a full one, so that none runs out on the way.

    Args:
        pool: of pages.
        max_residents: sessions that fit when all are full.
        lot: where the others wait.
        activity: of a session.
    """

    def __init__(
        self, pool: PagePool, max_residents: int, lot: ParkingLot, activity: Callable[[str], Activity]
    ) -> None:
        self._pool, self._lot, self._activity = pool, lot, activity
        self.max_residents = max_residents
        self._residents: OrderedDict[str, BlockTable] = OrderedDict()
        """The one that was used longest ago comes first."""
        self._had_turn: set[str] = set()
        """Residents that were used since they came in."""

    @property
    def residents(self) -> list[str]:
        """The one that was used longest ago comes first."""
        return list(self._residents)

    @property
    def parked(self) -> list[str]:
        """The one that waits longest comes first."""
        return list(self._lot.held)

    def add(self, session_id: str, table: BlockTable) -> None:
        self._residents[session_id] = table

    def touch(self, session_id: str) -> None:
        self._residents.move_to_end(session_id)
        self._had_turn.add(session_id)

    def remove(self, session_id: str) -> None:
        """Gives back the pages, or the parked copy."""
        self._lot.remove(session_id)
        table = self._residents.pop(session_id, None)
        self._had_turn.discard(session_id)
        if table is not None:
            table.truncate(0)

    def park(self, session_id: str) -> None:
        """Keys and values leave the pool, if they are there.

        Raises:
            SessionError: there is no room for them elsewhere; they stay.
        """
        if session_id not in self._lot.held:
            self._lot.store(session_id, copy_out(self._pool, self._residents[session_id]))
            self._residents.pop(session_id).truncate(0)
            self._had_turn.discard(session_id)

    def unpark(self, session_id: str, table: BlockTable) -> None:
        """A parked session comes into the pool, if need be in the place of another; it stays out if all are busy.

        Raises:
            SessionError: the parked copy is gone or damaged.
        """
        if self.make_room():
            put_back(self._pool, table, self._lot.load(session_id))
            self._lot.remove(session_id)
            self.add(session_id, table)

    def is_full(self) -> bool:
        return len(self._residents) >= self.max_residents

    def make_room(self) -> bool:
        """Whether one more fits, if need be because one was parked that has nothing to do or has had its turn."""
        if not self.is_full():
            return True
        leaving = next((name for name in self._residents if self._activity(name) == "idle"), None) or next(
            (name for name in self._residents if self._activity(name) == "waiting" and name in self._had_turn), None
        )
        if leaving is None:
            return False
        try:
            self.park(leaving)
        except SessionError as error:
            log.error("%s", error)
            return False
        return True

    def copy(self, session_id: str) -> Parked:
        """Keys and values of a session, wherever they are."""
        table = self._residents.get(session_id)
        return copy_out(self._pool, table) if table is not None else self._lot.load(session_id)
