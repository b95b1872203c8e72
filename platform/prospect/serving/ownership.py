"""Which gateway owns a session: the store says, and each change of owner raises its epoch."""

import asyncio
from collections.abc import Callable

from prospect.protocol.messages import SessionUpdate
from prospect.serving.mover import Mover
from prospect.serving.peers import owns, release_elsewhere
from prospect.serving.store import Store
from prospect.serving.stream import Stream
from prospect.serving.writer import StoreWriter


class Ownership:
    """Finds, takes and releases sessions.

    Args:
        streams: the sessions of this gateway, by id; changed by whoever takes or loses one.
        new_stream: makes one from its id, its opening message and its epoch.
        give_up: leaves a session to another gateway.
        mover: brings sessions into engines.
        writer: to the store.
        store: knows every session's owner.
        secret: that gateways know of each other.
    """

    def __init__(
        self,
        streams: dict[str, Stream],
        new_stream: Callable[[str, SessionUpdate, int], Stream],
        give_up: Callable[[Stream], None],
        mover: Mover,
        writer: StoreWriter,
        store: Store,
        secret: str,
    ) -> None:
        self._streams, self._new_stream, self._give_up = streams, new_stream, give_up
        self._mover, self._writer, self._store, self._secret = mover, writer, store, secret
        self._fetching: dict[str, asyncio.Task[Stream | None]] = {}

    async def owner_of(self, session_id: str) -> str | None:
        """The address of another gateway that owns a session; None: this one does, or nobody.

        A session whose gateway is gone becomes this one's.
        """
        if session_id in self._streams:
            return None
        row = await self._writer.call(self._store.find, session_id)
        if row is None or row.status != "open":
            return None
        if row.owner != self._mover.address and await owns(row.owner, self._secret, session_id):
            return row.owner
        await self.fetch(session_id, None, None)
        return None

    async def fetch(self, session_id: str, token: str | None, decided: int | None) -> Stream | None:
        """Become the owner of a session; None if the store knows no open one, or none of this resume token.

        Args:
            session_id: of the session.
            token: what its client comes with; None: a request over HTTP.
            decided: seq of the last frame whose decision the client has, as far as known.

        Raises:
            SessionError: `fenced`: another gateway was faster; `unavailable`: no engine takes it.
        """
        fetching = self._fetching.get(session_id)
        if fetching is None:
            fetching = self._fetching[session_id] = asyncio.create_task(self._take(session_id, token, decided))
            fetching.add_done_callback(lambda _: self._fetching.pop(session_id, None))
        return await asyncio.shield(fetching)

    async def release(self, session_id: str) -> None:
        """Let another gateway have a session: what was said is written, and nothing more is."""
        stream = self._streams.pop(session_id, None)
        if stream is not None:
            await self._writer.flush(stream)
            self._give_up(stream)

    async def check(self) -> None:
        """Give up what other gateways have taken while this process slept."""
        owned = await self._writer.call(self._store.epochs, self._mover.address)
        for stream in list(self._streams.values()):
            if stream.is_seated and owned.get(stream.session_id) != stream.epoch:
                self._give_up(stream)

    async def _take(self, session_id: str, token: str | None, decided: int | None) -> Stream | None:
        row = await self._writer.call(self._store.find, session_id)
        if row is None or row.status != "open" or (token is not None and token not in row.tokens):
            return None
        if row.owner != self._mover.address:
            await release_elsewhere(row.owner, self._secret, session_id)
            row = await self._writer.call(self._store.find, session_id)
            if row is None or row.status != "open":  # its owner was closing it
                return None
        stream = self._new_stream(session_id, SessionUpdate.model_validate(row.opened), row.epoch)
        self._streams[session_id] = stream
        try:
            await self._mover.take_over(stream, row, decided)
        except BaseException:
            self._streams.pop(session_id, None)
            raise
        self._writer.note(stream, urgent=True)
        return stream
