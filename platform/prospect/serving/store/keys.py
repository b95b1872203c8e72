"""The API keys in the database of the session store."""

from sqlalchemy import insert, select, update

from prospect.serving.store.database import Database
from prospect.serving.store.schema import KeyRow, keys


class KeyTable:
    """Keys by id; belongs to one thread. Raises as `Store` does.

    Args:
        url: of the session store.

    Raises:
        ConfigError: the URL is wrong, or the database cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)

    @property
    def name(self) -> str:
        """The database, for errors: without a password."""
        return self._database.name

    def add(self, row: KeyRow) -> None:
        with self._database.transaction() as connection:
            connection.execute(insert(keys).values(vars(row)))

    def rows(self) -> list[KeyRow]:
        """All keys, the revoked ones too, in the order in which they were made."""
        with self._database.transaction(reading=True) as connection:
            return [KeyRow(**row._asdict()) for row in connection.execute(select(keys).order_by(keys.c.created))]

    def revoke(self, key_id: str, now: float) -> bool:
        """Revoke a key for good; whether there was one that was not revoked.

        Args:
            key_id: of the key.
            now: unix seconds.
        """
        with self._database.transaction() as connection:
            this = keys.c.key_id == key_id, keys.c.revoked.is_(None)
            return bool(connection.execute(update(keys).where(*this).values(revoked=now)).rowcount)

    def close(self) -> None:
        self._database.close()
