"""A client of a site whose engines, gateway and store die while it talks; what it heard."""

import asyncio
import itertools
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from prospect.client.ledger import Ledger
from prospect.errors import UnknownSessionError
from prospect.hashing import derived_seed
from prospect.model.checkpoint import LoadedModel
from prospect.protocol.messages import (
    DurableMessage,
    ServerMessage,
    SessionUpdate,
    TextAppend,
    ThresholdsMessage,
)
from prospect.serving.host import SessionHost
from prospect.serving.local import LocalEngines
from prospect.serving.settings import Durability, ServingSettings
from prospect.serving.store import Store
from prospect.serving.worker import EngineWorker
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from tests.serving.models import CONTEXT, STEPS
from tests.serving.postgres import PostgresServer

SECRET = "s" * 32
SMALL = CONTEXT.model_copy(update={"max_seq_len": 288, "tail_seconds": 1.0})
"""A context that is full after some 100 frames, so that sessions are refreshed."""
STREAMING = StreamingSettings(
    cooldown_frames=3, speak_hysteresis=None, deterministic=True, deterministic_rows=4, chunk_tokens=64, max_sessions=4
)
NUM_FRAMES = 24
TEXTS = {2: "Shall I begin?", 9: "What now?", 17: "Done."}


class Site:
    """Engines, a store and a gateway, each of which may die."""

    def __init__(self, loaded: LoadedModel, url: str, durability: Durability, database: PostgresServer | None) -> None:
        self._loaded, self._database = loaded, database
        self.settings = ServingSettings(durability=durability, move_seconds=20)
        self.store = None if durability == "none" else Store(url)
        self.workers = [self._worker(), self._worker()]
        self.directory = LocalEngines(self.workers, SECRET)
        self.gateway = self._gateway()

    def _worker(self) -> EngineWorker:
        return EngineWorker(StreamingEngine(self._loaded, SMALL, STREAMING))

    def _gateway(self) -> SessionHost:
        return SessionHost(self.directory, SECRET, None, self.settings, self.store)

    @property
    def busy(self) -> EngineWorker:
        """The engine that has the session."""
        (worker,) = [worker for worker in self.workers if worker._sessions]
        return worker

    async def happen(self, event: str) -> None:
        match event:
            case "engine dies":
                await self.kill_engine()
            case "gateway dies":
                await self.kill_gateway()
            case "gateway stops":
                await self.gateway.stop()
                self.gateway = self._gateway()
            case "store dies":
                self._database.stop()
            case "store is back":
                self._database.start()
                while self.gateway._writer.degraded:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    async def kill_engine(self) -> None:
        worker = self.busy
        for task in worker._tasks:
            task.cancel()
        worker._server.close()
        for connection in list(worker._connections):
            connection.close()
        await asyncio.gather(*worker._tasks, return_exceptions=True)
        worker._sessions.clear()
        self.directory.forget(worker)

    async def kill_gateway(self) -> None:
        """Nothing that it has not sent or written is."""
        gateway = self.gateway
        for task in [*gateway._tasks, gateway._writer._task, gateway._pool._task]:
            task.cancel()
        gateway._server.close()
        for link in gateway._pool.links:
            link.close()
        await asyncio.sleep(0)
        self.gateway = self._gateway()

    async def stop(self) -> None:
        await self.gateway.stop()
        for worker in self.workers:
            await worker.stop()
        if self.store is not None:
            self.store.close()


@dataclass
class Heard:
    """What the session's client has, over all its connections."""

    messages: list[ServerMessage] = field(default_factory=list)

    @property
    def durable(self) -> list[tuple]:
        return [_said(message) for message in self.messages if isinstance(message, DurableMessage)]

    @property
    def decisions(self) -> list[tuple]:
        return [(m.seq, m.frame) for m in self.messages if m.type == "decision"]

    @property
    def num_decided(self) -> int:
        """Frames that are decided, also those whose decisions nobody has any more."""
        last = [m.seq if m.type == "decision" else m.decided_to for m in self.messages if m.type in _DECIDED]
        return max(last, default=-1) + 1


_DECIDED = ("decision", "session.moved")


def _said(message: DurableMessage) -> tuple:
    return (message.event, message.type, message.model_dump(exclude={"event", "type"}))


def features(index: int, loaded: LoadedModel) -> np.ndarray:
    rows = np.random.default_rng(derived_seed("survival", index)).standard_normal((1, loaded.model.config.vision_dim))
    return rows.astype(np.float16)


async def talk(site: Site, loaded: LoadedModel, deaths: dict[int, list[str]]) -> Heard:
    """Streams a session; after so many messages, things die."""
    update = SessionUpdate(
        session_id="a", goal="Make tea", steps=STEPS, thresholds=ThresholdsMessage(speak=0.5, update=0.45), keep=True
    )
    ledger, heard = Ledger(update, True, None), Heard()
    ledger.created = await site.gateway.create(update, True)
    frames = [ledger.next_frame(features(index, loaded), index / 2) for index in range(NUM_FRAMES)]
    unsent = iter(frames)

    async def deliver(message: BaseModel) -> None:
        take = site.gateway.text if isinstance(message, TextAppend) else site.gateway.push
        with suppress(UnknownSessionError):  # its gateway has just stopped; it is sent again after `resume`
            await take("a", message, ledger.created.resume)

    async def send(count: int) -> None:
        for frame in itertools.islice(unsent, count):
            text = [ledger.text(TEXTS[frame.seq])] if frame.seq in TEXTS else []
            for message in (*text, frame):
                ledger.keep(message, frame.seq)
                await deliver(message)

    async def resume() -> None:
        ledger.created = await site.gateway.resume(ledger.resuming())
        for message in ledger.to_send_again():
            await deliver(message)

    await send(4)
    decided = 0
    async with asyncio.timeout(60):
        while decided < NUM_FRAMES:
            async for message in site.gateway.events("a", ledger.created.resume):
                if ledger.note(message):
                    heard.messages.append(message)
                    if message.type in ("decision", "session.moved"):
                        await send(heard.num_decided - decided)
                    decided = heard.num_decided
                died = deaths.pop(len(heard.messages), [])
                for event in died:
                    await site.happen(event)
                if decided == NUM_FRAMES or "gateway dies" in died:
                    break
            if decided < NUM_FRAMES:
                await resume()
        return heard


def run(
    loaded: LoadedModel,
    folder: Path,
    durability: Durability,
    deaths: dict[int, list[str]],
    database: PostgresServer | None = None,
) -> Heard:
    async def story() -> Heard:
        url = f"sqlite:///{folder}/sessions.db" if database is None else database.new_database()
        site = Site(loaded, url, durability, database)
        try:
            return await talk(site, loaded, deaths)
        finally:
            await site.stop()

    return asyncio.run(story())
