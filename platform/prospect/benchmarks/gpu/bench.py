"""What the stages of one process share: the language model and the attention that runs on this card."""

import gc
import math
import time
from functools import cached_property
from pathlib import Path

import torch

from prospect.benchmarks.engine.model import planted_model
from prospect.benchmarks.gpu.settings import GpuSuite
from prospect.errors import ConfigError
from prospect.model.checkpoint import LoadedModel
from prospect.streaming.attention.select import attention_backend
from prospect.streaming.kv_cache.pool import PagePool
from prospect.streaming.kv_cache.sizing import FLASH_PAGE, PAGE, make_pool
from prospect.streaming.settings import StreamingSettings

_FEW = 3
"""Sessions of a pool on which a backend is only tried."""


class Bench:
    """What the stages of one process share.

    Args:
        suite: sizes.
        streaming: the engine's configured settings.
        folder: for a cache of weights, which random ones do not fill.

    Attributes:
        configured: the settings given.
        folder: as given.
        ends: `time.perf_counter()` at which the stage that runs is ended.
    """

    def __init__(self, suite: GpuSuite, streaming: StreamingSettings, folder: Path) -> None:
        self.suite, self.configured, self.folder = suite, streaming, folder
        self.ends = math.inf

    @cached_property
    def loaded(self) -> LoadedModel:
        """The language model, with random weights."""
        return planted_model(self.suite.engine(), self.suite.device, self.folder)

    @cached_property
    def streaming(self) -> StreamingSettings:
        """The engine's settings with the attention that runs here, so that each engine does not measure it again."""
        if self.suite.device == "cpu" or self.configured.attention != "auto":
            return self.configured
        small = self.configured.page_tokens or PAGE
        for tokens in (small, FLASH_PAGE):
            settings = self.configured.model_copy(update={"attention": "varlen", "page_tokens": tokens})
            try:
                attention_backend("varlen", self.small_pool(settings))
            except ConfigError:
                continue
            return settings
        return self.configured.model_copy(update={"attention": "flex", "page_tokens": small})

    def small_pool(self, settings: StreamingSettings) -> PagePool:
        """A pool for trying a backend."""
        few = settings.model_copy(update={"max_sessions": _FEW})
        return make_pool(self.loaded.model, few, self.suite.context)

    def seconds_left(self) -> float:
        """Until the stage that runs is ended."""
        return self.ends - time.perf_counter()

    def release(self) -> None:
        """Forget the language model and give its memory back."""
        self.__dict__.pop("loaded", None)
        gc.collect()
        if self.suite.device == "cuda":
            torch.cuda.empty_cache()
