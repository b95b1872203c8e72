"""Cache placement: which sessions have their keys and values in the pool, and which are parked."""

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
"""`working`: a feed of the session is running; `waiting`: frames wait to be fed; `idle`: neither."""


class CachePlacement:
    """Keeps a place for a full session in the pool for each resident, and parks residents when others need theirs.

    Args:
        pool: of pages.
        max_residents: full sessions that fit into the pool.
        lot: holds the other sessions.
        activity: tells what a session is doing.
    """

    def __init__(
        self, pool: PagePool, max_residents: int, lot: ParkingLot, activity: Callable[[str], Activity]
    ) -> None:
        self._pool, self._lot, self._activity = pool, lot, activity
        self.max_residents = max_residents
        self._residents: OrderedDict[str, BlockTable] = OrderedDict()
        """Least recently used first."""
        self._had_turn: set[str] = set()
        """Residents that ran since they were placed in the pool."""

    @property
    def residents(self) -> list[str]:
        """Ids of the sessions in the pool, least recently used first."""
        return list(self._residents)

    @property
    def parked(self) -> list[str]:
        """Ids of the parked sessions, longest parked first."""
        return list(self._lot.held)

    def add(self, session_id: str, table: BlockTable) -> None:
        self._residents[session_id] = table

    def touch(self, session_id: str) -> None:
        self._residents.move_to_end(session_id)
        self._had_turn.add(session_id)

    def remove(self, session_id: str) -> None:
        """Release the session's pages, or its parked copy."""
        self._lot.remove(session_id)
        table = self._residents.pop(session_id, None)
        self._had_turn.discard(session_id)
        if table is not None:
            table.truncate(0)

    def park(self, session_id: str) -> None:
        """Move a session's keys and values out of the pool, if they are there.

        Raises:
            SessionError: they cannot be written elsewhere; they stay.
        """
        if session_id not in self._lot.held:
            self._lot.store(session_id, copy_out(self._pool, self._residents[session_id]))
            self._residents.pop(session_id).truncate(0)
            self._had_turn.discard(session_id)

    def unpark(self, session_id: str, table: BlockTable) -> None:
        """Move a parked session into the pool, if need be in the place of another; it stays parked if all are busy.

        Raises:
            SessionError: the parked copy is missing or damaged.
        """
        if self.make_room():
            put_back(self._pool, table, self._lot.load(session_id))
            self._lot.remove(session_id)
            self.add(session_id, table)

    def is_full(self) -> bool:
        return len(self._residents) >= self.max_residents

    def make_room(self) -> bool:
        """Park an idle resident, or one that has had its turn, if the pool is full; return whether one more fits."""
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
        """Copy a session's keys and values, whether they are in the pool or parked."""
        table = self._residents.get(session_id)
        return copy_out(self._pool, table) if table is not None else self._lot.load(session_id)
