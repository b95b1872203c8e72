"""Select an attention backend: by name or by measuring, and only if it agrees with plain attention."""

import importlib.util
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prospect.errors import ConfigError
from prospect.messages import first_line
from prospect.model.interface import KVGeometry
from prospect.streaming.attention.cpu import CpuAttention
from prospect.streaming.attention.gpu import FlexAttention, VarlenAttention
from prospect.streaming.attention.interface import AttentionBackend, Chunk
from prospect.streaming.kv_cache.block_table import BlockTable
from prospect.streaming.kv_cache.pool import PagePool
from prospect.streaming.kv_cache.sizing import page_size
from prospect.streaming.settings import AttentionName, StreamingSettings

log = logging.getLogger(__name__)

BACKENDS: dict[AttentionName, AttentionBackend] = {
    "sdpa": CpuAttention,
    "flex": FlexAttention,
    "varlen": VarlenAttention,
}
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far a backend's results may differ from plain attention, for values of standard deviation 1."""
_MEASURED = 10
"""Timed calls of each backend."""
_SESSIONS = 16
"""Sessions in a timed call, where the pool has room."""


def attention_backend(name: AttentionName, pool: PagePool) -> AttentionBackend:
    """Return the named backend; for `auto`, `sdpa` on a CPU and the fastest backend that runs on a GPU.

    A CPU is not measured: FlexAttention compiles for every shape there (docs/benchmarks.md).

    Raises:
        ConfigError: the named backend, or for `auto` every backend, does not run here or does not agree with plain
            attention, as torch's compiled FlexAttention on CPUs without AVX-512.
    """
    if name != "auto":
        return _usable(name, pool)
    if pool.device.type == "cpu":
        return BACKENDS["sdpa"]
    installed = importlib.util.find_spec("torch.nn.attention.varlen") is not None
    candidates: Sequence[AttentionName] = ["varlen", "flex"] if installed else ["flex"]
    chosen = fastest({candidate: BACKENDS[candidate] for candidate in candidates}, pool)
    log.info("attention: %s", chosen)
    return BACKENDS[chosen]


def check_attention(
    settings: StreamingSettings, geometry: KVGeometry, dtype: torch.dtype, device: torch.device
) -> None:
    """Try the attention of an engine that is made later, so that a machine that cannot run it says so at once.

    Args:
        settings: of the engine.
        geometry: of the model; one of its layers is enough.
        dtype: of keys and values.
        device: of the engine.

    Raises:
        ConfigError: as `attention_backend`.
    """
    if not settings.deterministic:
        pool = PagePool(replace(geometry, layers=1), 6, page_size(settings, device), 3, dtype, device)
        attention_backend(settings.attention, pool)


def _usable(name: AttentionName, pool: PagePool) -> AttentionBackend:
    where = f"this {pool.device.type}"
    try:
        wrong = deviation(BACKENDS[name], pool)
    except Exception as error:  # any: a missing compiler, a kernel of another device
        reason = f"which does not run on {where} ({first_line(error)})"
    else:
        if wrong <= TOLERANCE[pool.dtype]:
            return BACKENDS[name]
        reason = f"whose results on {where} differ from plain attention by up to {wrong:.2g} in {pool.dtype}"
    raise ConfigError(
        f"`streaming.attention` is {name}, {reason}: choose auto, or another backend.", field="streaming.attention"
    )


@torch.inference_mode()
def fastest(candidates: Mapping[AttentionName, AttentionBackend], pool: PagePool) -> AttentionName:
    """Return the fastest backend for one new token each of some full sessions, measured on the empty pool.

    A backend that does not run on this device, or does not agree with plain attention, is skipped with a warning.

    Raises:
        ConfigError: no backend runs.
    """
    seconds: dict[AttentionName, float] = {}
    reasons = []
    for name, backend in candidates.items():
        try:
            if (wrong := deviation(backend, pool)) > TOLERANCE[pool.dtype]:
                reasons.append(f"{name} differs from plain attention by up to {wrong:.2g}")
                continue
            seconds[name] = _seconds(backend, pool)
        except Exception as error:  # any: a missing compiler or Triton, an older torch that takes other arguments
            reasons.append(f"{name} does not run ({first_line(error)})")
    if not seconds:
        raise ConfigError(
            f"`streaming.attention` (auto) finds no attention for {pool.device}: {'; '.join(reasons)}. FlexAttention "
            "needs Triton and a C compiler: install gcc, or a torch whose `varlen_attn` takes block tables.",
            field="streaming.attention",
        )
    for reason in reasons:
        log.warning("attention: %s; %s is used instead", reason, min(seconds, key=lambda name: seconds[name]))
    return min(seconds, key=lambda name: seconds[name])


def _full_tables(pool: PagePool) -> list[BlockTable]:
    """Return tables of sessions with room for exactly one token more."""
    tokens = pool.stretch * pool.page_size
    tables = [BlockTable(pool, tokens, shares=False) for _ in range(min(_SESSIONS, pool.num_pages // pool.stretch))]
    for table in tables:
        table.reserve(tokens)
        table.commit(tokens - 1)
    return tables


def _seconds(backend: AttentionBackend, pool: PagePool) -> float:
    """Time one call for some full sessions, its preparation included, after a first call that may compile."""
    keys, values = pool.keys[0], pool.values[0]
    tables = _full_tables(pool)
    chunks = [Chunk(table, [0]) for table in tables]
    query = torch.zeros(len(chunks), keys.shape[2] * pool.groups, keys.shape[3], dtype=keys.dtype, device=pool.device)

    def call() -> float:
        return float(backend(pool, chunks)(query, keys, values, 1.0).sum())  # reading a number waits for the GPU

    try:
        call()
        began = time.perf_counter()
        for _ in range(_MEASURED):
            call()
        return (time.perf_counter() - began) / _MEASURED
    finally:
        for table in tables:
            table.truncate(0)


@torch.inference_mode()
def deviation(backend: AttentionBackend, pool: PagePool) -> float:
    """Return the largest difference between a backend and plain attention, for one new token each of a few sessions.

    Writes random keys and values into pages of the empty pool, and zeros when done.
    """
    tables = [BlockTable(pool, pool.stretch * pool.page_size, shares=False) for _ in range(min(3, pool.num_pages))]
    keys, values = pool.keys[0], pool.values[0]
    generator = torch.Generator().manual_seed(0)
    try:
        for index, table in enumerate(tables):  # half a page, a whole one, and one and a half
            room = min(pool.stretch, pool.num_pages - 2) * pool.page_size
            length = max(1, min((index + 1) * pool.page_size // 2, room))
            table.reserve(length)
            table.commit(length - 1)
            for pages in (keys, values):
                for page in table.pages:
                    pages[page] = torch.randn(pages[page].shape, generator=generator).to(pages)
        chunks = [Chunk(table, [0]) for table in tables]
        shape = len(chunks), keys.shape[2] * pool.groups, keys.shape[3]
        query = torch.randn(shape, generator=generator).to(keys)
        scaling = keys.shape[3] ** -0.5
        found = backend(pool, chunks)(query, keys, values, scaling).float()
        return float((found - plain_attention(pool, chunks, query, scaling)).abs().nan_to_num(torch.inf).max())
    finally:
        for table in tables:
            for page in table.pages:
                keys[page], values[page] = 0, 0
            table.truncate(0)


def plain_attention(pool: PagePool, chunks: Sequence[Chunk], query: Tensor, scaling: float) -> Tensor:
    """Compute the first layer's attention [N, Hq, Dh] session by session with torch's SDPA, in float32."""
    outs = []
    for chunk, rows in zip(chunks, query.float().split([chunk.num_tokens for chunk in chunks]), strict=True):
        slots = chunk.table.slots(0, chunk.end)
        keys, values = (pages[0].flatten(0, 1)[slots].float().transpose(0, 1) for pages in (pool.keys, pool.values))
        mask = torch.ones(chunk.num_tokens, chunk.end, dtype=torch.bool, device=query.device).tril(chunk.past)
        out = scaled_dot_product_attention(
            rows.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, scale=scaling, enable_gqa=True
        )
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)
