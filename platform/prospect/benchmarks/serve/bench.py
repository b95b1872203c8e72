"""What the stages of one process share: the model, the servers and the clients."""

import base64
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from prospect.benchmarks.config import BenchmarkConfig
from prospect.benchmarks.serve import bare, client
from prospect.benchmarks.serve.footage import Footage, ServedWorkload
from prospect.benchmarks.serve.model import write_model
from prospect.benchmarks.serve.servers import (
    HostServer,
    Server,
    ServeServer,
    free_port,
    running_host,
    running_serve,
    stream_url,
)
from prospect.benchmarks.serve.sessions import opening
from prospect.benchmarks.serve.settings import Kind, ServeSuite
from prospect.dialogue.timeline import FPS
from prospect.serving.config import ServeConfig
from prospect.serving.settings import Durability, ServingSettings
from prospect.streaming.settings import StreamingSettings

_SPARE = 8
"""Places of the server beside the measured sessions."""


class Worker:
    """Functions that run in one process of their own, one after the other."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))
        self.submit = self._pool.submit

    def __call__(self, function: Any, *arguments: Any) -> Any:
        return self._pool.submit(function, *arguments).result()

    @cached_property
    def process(self) -> psutil.Process:
        return psutil.Process(self(os.getpid))

    def stop(self) -> None:
        self._pool.shutdown()


class Bench:
    """Everything is started when it is first needed, and ended by `close`.

    Args:
        config: the benchmark's.
        suite: the same as `config.suite`.
        folder: for the model and databases.
    """

    def __init__(self, config: BenchmarkConfig, suite: ServeSuite, folder: Path) -> None:
        self.config, self.suite, self.folder = config, suite, folder
        self._stack = ExitStack()
        self._serve_stack = self._stack.enter_context(ExitStack())
        self._served: tuple[int, ServeServer] | None = None
        self.threads = max(1, len(os.sched_getaffinity(0)) - 1)
        """Of torch, as an engine's replica has them."""

    def close(self) -> None:
        self._stack.close()

    # What is served ----------------------------------------------------------------------------------------

    @cached_property
    def footage(self) -> Footage:
        """The pictures; writes the model."""
        return write_model(self.config, self.model, self.suite.utterance_tokens)

    @property
    def model(self) -> Path:
        """Folder of the model, once `footage` has been asked for."""
        return self.folder / "model"

    @property
    def streaming(self) -> StreamingSettings:
        """Of the engine: every frame that is above the threshold speaks."""
        suite = self.suite
        most = max(*suite.sessions, *suite.embedding_sessions, suite.saturated_sessions, suite.neighbours)
        changes = {"cooldown_frames": 0, "speak_hysteresis": None, "max_sessions": most + _SPARE}
        return self.config.streaming.model_copy(update=changes)

    def serving(self, **changes: Any) -> ServingSettings:
        """Of a server on a free port."""
        _ = self.footage
        given = {"port": free_port(), "model": str(self.model), "store": f"sqlite:///{self.folder}/sessions.db"}
        return ServingSettings(**given | changes)

    @cached_property
    def bare(self) -> Worker:
        """The bare engine's process."""
        worker = self._stack.enter_context(_running())
        _ = self.footage
        worker(bare.load, self.model, self.streaming, self.threads)
        return worker

    @cached_property
    def host(self) -> HostServer:
        """The host without Ray, with the default durability."""
        return self._stack.enter_context(self.running_host("events"))

    @contextmanager
    def running_host(self, durability: Durability, core: int | None = None) -> Iterator[HostServer]:
        serving = self.serving(durability=durability)
        with running_host(self.model, self.streaming, serving, self.threads, core) as host:
            yield host

    def served(self, replicas: int = 1) -> ServeServer:
        """The Ray Serve application with so many engines and gateways, and no other at the same time."""
        if self._served is None or self._served[0] != replicas:
            self.stop_serve()
            running = self.running_serve(num_replicas=replicas, num_gateways=replicas)
            self._served = replicas, self._serve_stack.enter_context(running)
        return self._served[1]

    def stop_serve(self) -> None:
        """End the application; the next one is new."""
        self._served = None
        self._serve_stack.close()

    @contextmanager
    def running_serve(self, **serving: Any) -> Iterator[ServeServer]:
        config = self.config
        served = ServeConfig(
            storage=config.storage,
            cluster=config.cluster,
            streaming=self.streaming,
            tracking=config.tracking,
            serving=self.serving(direct_port=free_port(), **serving),
        )
        with running_serve(served) as server:
            yield server

    # Clients -----------------------------------------------------------------------------------------------

    @cached_property
    def client(self) -> Worker:
        """The process of the measured clients."""
        return self._stack.enter_context(_running())

    @cached_property
    def neighbour(self) -> Worker:
        """The process of the client that disturbs them."""
        return self._stack.enter_context(_running())

    @cached_property
    def messages(self) -> Mapping[Kind, list[str]]:
        """Each picture as the fields of a message."""
        shape = list(self.footage.embeddings.shape[1:])
        fingerprint = self.footage.fingerprint
        embeddings = [base64.b64encode(rows.tobytes()).decode() for rows in self.footage.embeddings]
        return {
            "pictures": [f'"image": "{base64.b64encode(data).decode()}"' for data in self.footage.pictures],
            "embeddings": [
                f'"embedding": {{"data": "{data}", "shape": {shape}, "fingerprint": "{fingerprint}"}}'
                for data in embeddings
            ],
        }

    def frames(self, sessions: int) -> int:
        """Of each session in a paced measurement."""
        suite, most = self.suite, sessions * self.suite.longest_s * FPS
        return math.ceil((suite.decisions if suite.decisions <= most else suite.few_decisions) / sessions)

    def workload(self, sessions: int, frames: int, speak_rate: float | None = None) -> ServedWorkload:
        return ServedWorkload(self.footage, self.suite.schedule(speak_rate), sessions, frames)

    def group(self, server: Server, kind: Kind, workload: ServedWorkload) -> dict[str, Any]:
        """Sessions for `prospect.benchmarks.serve.client.open_sessions`."""
        pictures = [[workload.picture(s, k) for k in range(workload.frames)] for s in range(workload.sessions)]
        return {
            "url": stream_url(server),
            "opening": opening(self.suite),
            "messages": self.messages[kind],
            "pictures": np.array(pictures),
        }

    def open(self, *groups: dict[str, Any]) -> None:
        """Open the clients' sessions."""
        self.client(client.open_sessions, groups, self.suite.compression)


@contextmanager
def _running() -> Iterator[Worker]:
    worker = Worker()
    try:
        yield worker
    finally:
        worker.stop()
