"""Which sessions have their keys and values in the pool, and which are parked."""

from collections import OrderedDict
from collections.abc import Callable

from prospect.streaming.pages import BlockTable, PagePool
from prospect.streaming.parking import Parked, ParkingLot, copy_out, put_back


class Residence:
    """Each resident session is promised the pages of a full one, so that none runs out on the way.

    Args:
        pool: of pages.
        places: sessions that fit when all are full.
        lot: where the others wait.
    """

    def __init__(self, pool: PagePool, places: int, lot: ParkingLot) -> None:
        self._pool, self._lot = pool, lot
        self.places = places
        self._residents: OrderedDict[str, BlockTable] = OrderedDict()
        """The one that was used longest ago comes first."""

    @property
    def num_parked(self) -> int:
        return len(self._lot)

    def is_full(self) -> bool:
        return len(self._residents) >= self.places

    def is_parked(self, session_id: str) -> bool:
        return session_id in self._lot

    def enter(self, session_id: str, table: BlockTable) -> None:
        self._residents[session_id] = table

    def used(self, session_id: str) -> None:
        self._residents.move_to_end(session_id)

    def leave(self, session_id: str) -> None:
        """Gives back the pages, or the parked copy."""
        self._lot.forget(session_id)
        table = self._residents.pop(session_id, None)
        if table is not None:
            table.truncate(0)

    def park(self, session_id: str) -> None:
        self._lot.leave(session_id, copy_out(self._pool, self._residents[session_id]))
        self._residents.pop(session_id).truncate(0)

    def restore(self, session_id: str, table: BlockTable) -> None:
        """Raises SessionError where the parked copy is gone or damaged."""
        put_back(self._pool, table, self._lot.look(session_id))
        self._lot.forget(session_id)
        self.enter(session_id, table)

    def copy(self, session_id: str) -> Parked:
        """Keys and values of a session, wherever they are."""
        table = self._residents.get(session_id)
        return copy_out(self._pool, table) if table is not None else self._lot.look(session_id)

    def oldest(self, may_leave: Callable[[str], bool]) -> str | None:
        """The session used longest ago among those that may leave."""
        return next(filter(may_leave, self._residents), None)
