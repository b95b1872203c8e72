"""The server without Ray: gateway, encoder and engine in one process behind uvicorn."""

import os
from pathlib import Path

import torch
import uvicorn

from prospect.dialogue.prompt import ContextSettings
from prospect.model.checkpoint import load_model
from prospect.serving.api import build_api
from prospect.serving.live_encoder import LiveEncoder, encoder_of
from prospect.serving.local import local_host
from prospect.serving.settings import ServingSettings
from prospect.serving.store import Store
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from prospect.streaming.types import EngineEvent


def run_host(
    folder: Path, streaming: StreamingSettings, serving: ServingSettings, threads: int, core: int | None
) -> None:
    """Serve the model of `folder` until the process is ended.

    Args:
        folder: of the model.
        streaming: settings of the engine.
        serving: host, port, durability and store.
        threads: of torch.
        core: of the engine's thread, all other threads then stay off it; None: all threads run anywhere.
    """
    torch.set_num_threads(threads)
    if core is not None:
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {core})  # threads that are started later inherit it
    loaded = load_model(folder)
    context = ContextSettings.of_model(loaded.manifest.get("context", {}))
    engine = PinnedEngine(loaded, context, streaming)
    engine.core = core
    encoder = encoder_of(loaded)
    store = None if serving.durability == "none" else Store(str(serving.store))
    host = local_host(engine, None if encoder is None else LiveEncoder(encoder), serving, store, "benchmark")
    uvicorn.run(build_api(host), host=serving.host, port=serving.port, log_level="error")


class PinnedEngine(StreamingEngine):
    """An engine whose steps stay on one core.

    Attributes:
        core: which; None: any.
    """

    core: int | None = None

    def step(self) -> list[tuple[str, EngineEvent]]:
        """Run one forward pass."""
        if self.core is not None:
            os.sched_setaffinity(0, {self.core})
            self.core = None
        return super().step()
