"""Gateway, engine and encoder in one process, over the same connections: for tests, benchmarks and notebooks."""

import secrets
from collections.abc import Collection

from prospect.serving.encoders import Encoder
from prospect.serving.host import SessionHost
from prospect.serving.settings import ServingSettings
from prospect.serving.store import Store
from prospect.serving.worker import EngineWorker
from prospect.streaming.engine import StreamingEngine


class LocalEngines:
    """A directory of engines in this process, which begin to listen when they are first asked for."""

    def __init__(self, workers: Collection[EngineWorker], secret: str) -> None:
        self._workers, self._secret = list(workers), secret
        self._addresses: dict[EngineWorker, str] = {}

    async def addresses(self) -> Collection[str]:
        """Return the address of each."""
        for worker in self._workers:
            if worker not in self._addresses:
                self._addresses[worker] = ""
                self._addresses[worker] = await worker.start("127.0.0.1", self._secret)
        return list(filter(None, self._addresses.values()))

    def forget(self, worker: EngineWorker) -> None:
        """Let an engine take no more sessions; those that it has move."""
        self._workers.remove(worker)
        del self._addresses[worker]


def local_host(
    engine: StreamingEngine,
    encoder: Encoder | None = None,
    settings: ServingSettings | None = None,
    store: Store | None = None,
    version: str = "",
) -> SessionHost:
    """Make a host whose engine is in this process.

    Args:
        engine: decides the frames.
        encoder: of pictures; None: clients send embeddings.
        settings: of the application.
        store: what survives this process.
        version: of the served model.
    """
    secret = secrets.token_hex(16)
    worker = EngineWorker(engine, version, encoder is not None)
    return SessionHost(LocalEngines([worker], secret), secret, encoder, settings, store)
