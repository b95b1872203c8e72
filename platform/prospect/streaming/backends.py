"""The attention backends by name, and the one that is fastest here."""

import importlib.util
import logging
import time
from collections.abc import Mapping, Sequence

import torch

from prospect.streaming.attention import Backend, Part
from prospect.streaming.paged import FlexAttention, VarlenAttention
from prospect.streaming.pages import BlockTable, PagePool
from prospect.streaming.runs import RunAttention
from prospect.streaming.settings import AttentionName

log = logging.getLogger(__name__)

BACKENDS: dict[AttentionName, Backend] = {"sdpa": RunAttention, "flex": FlexAttention, "varlen": VarlenAttention}
_MEASURED = 10
"""Calls of each backend that are timed."""
_SESSIONS = 16
"""That are measured at once, where the pool has room."""


def attention_backend(name: AttentionName, pool: PagePool) -> Backend:
    """The named backend; `auto`: `sdpa` on a CPU, on a GPU the faster one of those that run there.

    A CPU is not measured: FlexAttention takes a compilation a shape there (docs/benchmarks.md).
    """
    if name != "auto":
        return BACKENDS[name]
    if pool.device.type == "cpu":
        return BACKENDS["sdpa"]
    installed = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    candidates: Sequence[AttentionName] = ["varlen", "flex"] if installed else ["flex"]
    chosen = fastest({candidate: BACKENDS[candidate] for candidate in candidates}, pool)
    log.info("attention: %s", chosen)
    return BACKENDS[chosen]


@torch.inference_mode()
def fastest(candidates: Mapping[AttentionName, Backend], pool: PagePool) -> AttentionName:
    """Which takes least time for one new token each of some full sessions; of an empty pool.

    One that does not run on this device is passed over and said.

    Raises:
        RuntimeError: none runs.
    """
    seconds: dict[AttentionName, float] = {}
    tables = _full_tables(pool)
    try:
        parts = [Part(table, 1) for table in tables]
        for name, backend in candidates.items():
            try:
                seconds[name] = _seconds(backend, pool, parts)
            except (RuntimeError, TypeError, ValueError) as error:  # an older torch takes other arguments
                log.warning("attention: %s does not run here: %s", name, error)
    finally:
        for table in tables:
            table.truncate(0)
    if not seconds:
        raise RuntimeError(f"none of the attention backends {', '.join(candidates)} runs on {pool.device}")
    return min(seconds, key=lambda name: seconds[name])


def _full_tables(pool: PagePool) -> list[BlockTable]:
    """Of sessions with room for one token more."""
    tokens = pool.stretch * pool.page_size
    tables = [BlockTable(pool, tokens, shares=False) for _ in range(min(_SESSIONS, pool.num_pages // pool.stretch))]
    for table in tables:
        table.reserve(tokens)
        table.commit(tokens - 1)
    return tables


def _seconds(backend: Backend, pool: PagePool, parts: Sequence[Part]) -> float:
    """Of one call, its preparation included, after a first one that may compile."""
    keys, values = pool.keys[0], pool.values[0]
    query = torch.zeros(len(parts), keys.shape[2] * pool.groups, keys.shape[3], dtype=keys.dtype, device=pool.device)

    def call() -> float:
        return float(backend(pool, parts)(query, keys, values, 1.0).sum())  # reading a number waits for the GPU

    call()
    began = time.perf_counter()
    for _ in range(_MEASURED):
        call()
    return (time.perf_counter() - began) / _MEASURED
