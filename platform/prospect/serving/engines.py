"""The engines that a gateway reaches, and where a session goes."""

import asyncio
import logging
from collections.abc import Collection, Iterable
from typing import Any, Protocol

from prospect.errors import ProspectError, session_error
from prospect.protocol.messages import ModelCard
from prospect.serving.logs import about
from prospect.serving.monitor import Monitor
from prospect.serving.replay import Json, SentFrame
from prospect.serving.wire import Connection, LostConnectionError, connect

log = logging.getLogger(__name__)

LOOKED_EVERY_S = 0.2
"""Seconds between two looks at which engines there are."""
PINGED_EVERY_S = 2.0
ANSWERS_WITHIN_S = 20.0
"""Seconds without an answer after which an engine counts as dead; a step that compiles takes some."""
FOUND_WITHIN_S = 10.0
"""Seconds for which a client waits where there is no engine at all."""


class Directory(Protocol):
    """Knows the engines that take sessions."""

    async def addresses(self) -> Collection[str]:
        """Return the address of each, "host:port"."""


class NewsReader(Protocol):
    """What a gateway does with what engines say."""

    def take_news(self, link: "EngineLink", session_id: str, epoch: int, *news: Any) -> None:
        """Take (number of the first event, events, base, progress) of a session."""

    def engine_lost(self, link: "EngineLink") -> None:
        """Move the sessions of an engine that is gone or on its way out."""


class EngineLink:
    """A gateway's connection to one engine.

    Attributes:
        address: of the engine.
        card: what it serves.
        accepted: fingerprints of embeddings that it takes.
        max_waiting: most frames of one session that wait in it.
        num_sessions: that it had when it was last asked, over all gateways.
        capacity: sessions that have a place in it.
        leaving: whether its replica takes no more sessions.
    """

    connection: Connection
    card: ModelCard
    accepted: frozenset[str]
    max_waiting: int
    _thresholds: dict[str, dict[str, float]]

    def __init__(self, address: str, reader: NewsReader, monitor: Monitor) -> None:
        self.address, self._reader, self._monitor = address, reader, monitor
        self.num_sessions = self.capacity = 0
        self.leaving = False
        self._frames: list[tuple[str, int, list[Any]]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        return self.connection.is_open

    @property
    def is_full(self) -> bool:
        """Whether all its places are taken, as far as known."""
        return self.num_sessions >= self.capacity

    async def begin(self, secret: str) -> "EngineLink":
        """Connect.

        Raises:
            LostConnectionError: nobody listens there.
        """
        self.connection = await connect(self.address, secret, self)
        hello = await self.connection.call("hello", within=ANSWERS_WITHIN_S)
        self.card = ModelCard.model_validate(hello["card"])
        self.accepted, self.capacity = frozenset(hello["accepted"]), hello["capacity"]
        self.max_waiting, self._thresholds = hello["max_waiting"], hello["thresholds"]
        self._task = asyncio.create_task(self._ping())
        return self

    def thresholds(self, dataset: str) -> dict[str, float]:
        """Those of a session that brings none, `speak` and `update`."""
        return self._thresholds.get(dataset, self._thresholds[""])

    async def call(self, operation: str, session_id: str, epoch: int, *arguments: Any) -> Any:
        """Ask the engine; raises `LostConnectionError`, or its refusal."""
        return await self.connection.call(operation, session_id, epoch, *arguments, within=ANSWERS_WITHIN_S)

    async def ask(self, within: float = ANSWERS_WITHIN_S) -> Json:
        """Exchange with the engine how it and this gateway are; returns `EngineWorker`'s answer to a ping.

        Raises:
            LostConnectionError: it does not answer in time.
        """
        load: Json = await self.connection.call("ping", self._monitor.name, self._monitor.summary(), within=within)
        self.num_sessions = load["sessions"]
        return load

    def push(self, session_id: str, epoch: int, frames: Iterable[SentFrame]) -> None:
        """Send frames, in one message with those of all other sessions of this moment."""
        if not self._frames:
            asyncio.get_running_loop().call_soon(self._flush)
        self._frames.append((session_id, epoch, [frame.wired() for frame in frames]))

    def close(self) -> None:
        self.connection.close()

    async def answer(self, connection: Connection, operation: str, arguments: list[Any]) -> Any:
        """Refuse: engines ask nothing."""
        raise session_error("internal", f"operation {operation!r} is unknown")

    def notice(self, connection: Connection, operation: str, arguments: list[Any]) -> None:
        """Take news of a session."""
        assert operation == "news"
        self._reader.take_news(self, *arguments)

    def lost(self, connection: Connection) -> None:
        """Move the sessions."""
        if self._task is not None:
            self._task.cancel()
            self._reader.engine_lost(self)

    def _flush(self) -> None:
        frames, self._frames = self._frames, []
        self.connection.notify("frames", *frames)

    async def _ping(self) -> None:
        try:
            while True:
                await asyncio.sleep(PINGED_EVERY_S)
                await self.ask()
        except (LostConnectionError, ProspectError) as error:
            log.error("engine %s: %s", self.address, error, extra=about("engine.lost", engine=self.address))
            self.connection.close()


class EnginePool:
    """Connections to all engines.

    Args:
        directory: knows the engines.
        secret: that they ask for.
        reader: takes their news.
        monitor: has this gateway's numbers, which each ping tells the engines.
    """

    def __init__(self, directory: Directory, secret: str, reader: NewsReader, monitor: Monitor) -> None:
        self._directory, self._secret, self._reader, self._monitor = directory, secret, reader, monitor
        self._links: dict[str, EngineLink] = {}
        self._found = asyncio.Event()
        self._task = asyncio.create_task(self._look_often())

    @property
    def links(self) -> list[EngineLink]:
        """Of the engines that take sessions."""
        return [link for link in self._links.values() if link.is_open and not link.leaving]

    async def any(self) -> EngineLink:
        """Return an engine, waiting for one if there is none.

        Raises:
            SessionError: `unavailable`.
        """
        try:
            async with asyncio.timeout(FOUND_WITHIN_S):
                while not self.links:
                    self._found.clear()
                    await self._found.wait()
        except TimeoutError:
            message = f"no engine has answered within {FOUND_WITHIN_S:g} seconds; try again"
            raise session_error("unavailable", message) from None
        return self.links[0]

    async def by_load(self) -> list[EngineLink]:
        """Return the engines, the one with the fewest sessions first; raises as `any`."""
        await self.any()
        return sorted(self.links, key=lambda link: link.num_sessions)

    async def reach(self, address: str) -> EngineLink:
        """Return the engine at an address, also one that takes no new sessions.

        Raises:
            LostConnectionError: it is gone.
        """
        link = self._links.get(address)
        if link is None or not link.is_open:
            link = self._links[address] = await self._connect(address)
            link.leaving = address not in await self._directory.addresses()
        return link

    def check(self, link: EngineLink) -> None:
        """Have the sessions of an engine moved if it takes no more."""
        if link.leaving or not link.is_open:
            self._reader.engine_lost(link)

    def stop(self) -> None:
        self._task.cancel()
        for link in self._links.values():
            link.close()

    async def _look_often(self) -> None:
        while True:
            try:
                await self._look(await self._directory.addresses())
            except Exception:
                log.exception("looking for engines")
            await asyncio.sleep(LOOKED_EVERY_S)

    async def _connect(self, address: str) -> EngineLink:
        return await EngineLink(address, self._reader, self._monitor).begin(self._secret)

    async def _look(self, addresses: Iterable[str]) -> None:
        there = set(addresses)
        for address, link in list(self._links.items()):
            if not link.is_open:
                del self._links[address]
            elif address in there:
                link.leaving = False
            elif not link.leaving:
                link.leaving = True
                self._reader.engine_lost(link)
        for address in there - set(self._links):
            try:
                self._links[address] = await self._connect(address)
            except LostConnectionError:
                continue  # it is starting, or dying
        if self.links:
            self._found.set()


class FixedEngines:
    """A directory that never changes."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def addresses(self) -> Collection[str]:
        """Return them."""
        return self._addresses
