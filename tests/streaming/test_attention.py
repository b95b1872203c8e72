"""Attention over pages equals plain attention over each session's own keys, whatever the tables look like."""

from typing import get_args

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import varlen
from torch.nn.attention.flex_attention import flex_attention
from transformers import LlamaConfig

from prospect.errors import ConfigError
from prospect.model.interface import KVGeometry
from prospect.streaming.attention import cpu, gpu
from prospect.streaming.attention.cpu import CpuAttention
from prospect.streaming.attention.gpu import VarlenAttention
from prospect.streaming.attention.interface import Attend, AttentionBackend, Chunk
from prospect.streaming.attention.select import (
    BACKENDS,
    TOLERANCE,
    attention_backend,
    check_attention,
    deviation,
    fastest,
    plain_attention,
)
from prospect.streaming.kv_cache.block_table import BlockTable
from prospect.streaming.kv_cache.pool import PagePool
from prospect.streaming.runner.cuda_graphs import SingleTokenVarlen
from prospect.streaming.runner.static import FixedAttention, StaticAttention, StaticBuffers
from prospect.streaming.settings import AttentionName, StreamingSettings
from tests.needs import needs_cuda

CONFIG = LlamaConfig(num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, hidden_size=64)
SIZE, FULL = 8, 6
LENGTHS, NEW = (5, 40, 23, 17, 30), (1, 7, 1, 3, 1)
EXACT = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def filled_pool(dtype: torch.dtype, device: str = "cpu", size: int = SIZE) -> PagePool:
    pool = PagePool(KVGeometry.of(CONFIG), 40, size, FULL, dtype, torch.device(device))
    generator = torch.Generator().manual_seed(0)
    for pages in (*pool.keys, *pool.values):
        pages.copy_(torch.randn(pages.shape, generator=generator))
    return pool


def some_chunks(pool: PagePool, layout: str) -> list[Chunk]:
    """Tables in one run each, with a common beginning elsewhere, or with every page elsewhere."""
    size = pool.page_size
    tables = [BlockTable(pool, size * FULL) for _ in LENGTHS]
    common = [39, 38] if layout == "scattered" else [30, 31]
    lengths = [length * size // SIZE for length in LENGTHS]
    for index, (table, length, new) in enumerate(zip(tables, lengths, NEW, strict=True)):
        if layout != "runs" and length > 2 * size:
            table.pages, table.length = list(common), 2 * size
        if layout == "scattered":
            table.pages += range(index, 30, 6)
            del table.pages[pool.pages_for(length + new) :]
        else:
            table.reserve(length + new - table.length)
        table.length = length
    return [Chunk(table, [0] * new) for table, new in zip(tables, NEW, strict=True)]


def compare(backend, layout: str, dtype: torch.dtype = torch.float32, device: str = "cpu", size: int = SIZE) -> None:
    pool = filled_pool(dtype, device, size)
    chunks = some_chunks(pool, layout)
    query = torch.randn(sum(NEW), 4, 16, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    with torch.inference_mode():
        found = backend(pool, chunks)(query, pool.keys[0], pool.values[0], 0.25)
        expected = plain_attention(pool, chunks, query, 0.25)
    assert (found - expected).abs().max() <= EXACT[dtype]


@pytest.mark.parametrize("dtype", list(EXACT))
@pytest.mark.parametrize("layout", ["runs", "shared", "scattered"])
def test_on_a_cpu_it_reads_runs_where_they_stand(layout, dtype):
    compare(CpuAttention, layout, dtype)


@pytest.mark.parametrize("dtype", list(EXACT))
@pytest.mark.parametrize(("call_bytes", "calls"), [(0, 8), (4096, 6), (1 << 30, 1)])
def test_neighbours_are_read_in_one_call_where_that_costs_less(call_bytes, calls, dtype, monkeypatch):
    """Twelve sessions beside each other, of which four have nothing to do; two pairs are of about the same length."""
    monkeypatch.setattr(cpu, "_CALL_BYTES", call_bytes)
    flash, seen = cpu._flash, []
    monkeypatch.setattr(cpu, "_flash", lambda *given: seen.append(given) or flash(*given))
    pool = PagePool(KVGeometry.of(CONFIG), 12 * FULL, SIZE, FULL, dtype, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for pages in (*pool.keys, *pool.values):
        pages.copy_(torch.randn(pages.shape, generator=generator))
    tables = [BlockTable(pool, SIZE * FULL) for _ in range(12)]
    for table, length in zip(tables, (5, 40, 23, 17, 30, 47, 1, 12, 44, 45, 46, 20), strict=True):
        table.reserve(length)
        table.commit(length - 1)
    chunks = [Chunk(table, [0]) for index, table in enumerate(tables) if index % 3 != 1]
    query = torch.randn(len(chunks), 4, 16, generator=generator).to(dtype)
    with torch.inference_mode():
        found = CpuAttention(pool, chunks)(query, pool.keys[0], pool.values[0], 0.25)
        assert (found - plain_attention(pool, chunks, query, 0.25)).abs().max() <= EXACT[dtype]
    assert len(seen) == calls


@pytest.mark.parametrize("pages", range(2 * FULL, 3 * FULL))
def test_the_last_stretch_of_a_pool_may_be_short(pages, monkeypatch):
    monkeypatch.setattr(cpu, "_CALL_BYTES", 1 << 30)
    pool = PagePool(KVGeometry.of(CONFIG), pages, SIZE, FULL, torch.float32, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for keys in (*pool.keys, *pool.values):
        keys.copy_(torch.randn(keys.shape, generator=generator))
    tables = [BlockTable(pool, SIZE * FULL) for _ in range(2 + (pages > 2 * FULL))]
    for table in tables:
        table.reserve(5)
        table.commit(4)
    assert [table.pages for table in tables] == [[0], [FULL], [2 * FULL]][: len(tables)]
    chunks = [Chunk(table, [0]) for table in tables]
    query = torch.randn(len(chunks), 4, 16, generator=generator)
    with torch.inference_mode():
        found = CpuAttention(pool, chunks)(query, pool.keys[0], pool.values[0], 0.25)
        assert (found - plain_attention(pool, chunks, query, 0.25)).abs().max() <= EXACT[torch.float32]


def in_rows(attention: StaticAttention) -> AttentionBackend:
    """The chunks' tokens as rows, and a few rows of padding behind them."""

    def backend(pool: PagePool, chunks: list[Chunk]) -> Attend:
        rows = StaticBuffers(pool, sum(NEW) + 3, pool.page_size * FULL, vision_dim=1)
        rows.fill(chunks)
        attend = attention(pool, rows)

        def padded(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
            return attend(F.pad(query, (0, 0, 0, 0, 0, 3)), keys, values, scaling)[:-3]

        return padded

    return backend


@pytest.mark.parametrize("layout", ["runs", "shared", "scattered"])
def test_with_a_fixed_number_of_keys(layout):
    compare(in_rows(FixedAttention), layout)


def documented_varlen(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa, seqused_k, block_table
) -> torch.Tensor:
    """What torch's documentation of `varlen_attn` says of the arguments given here, sequence by sequence."""
    assert (window_size, enable_gqa) == ((-1, 0), True)
    assert {cu_seq_q.dtype, cu_seq_k.dtype, seqused_k.dtype, block_table.dtype} == {torch.int32}
    assert query.is_contiguous()
    assert cu_seq_q[-1] == len(query)
    assert max_q >= cu_seq_q.diff().max()
    assert max_k >= seqused_k.max()
    assert block_table.shape[1] == -(-max_k // key.shape[1])  # cuDNN takes no other width
    assert cu_seq_k.diff().tolist() == seqused_k.tolist()  # Flash Attention 2 takes no None beside `cu_seq_q`
    outs = []
    for rows, end, pages in zip(query.split(cu_seq_q.diff().tolist()), seqused_k, block_table, strict=True):
        keys, values = (pool[pages].flatten(0, 1)[:end].transpose(0, 1) for pool in (key, value))
        mask = torch.ones(len(rows), int(end), dtype=torch.bool).tril(int(end) - len(rows))
        outs.append(
            F.scaled_dot_product_attention(
                rows.transpose(0, 1), keys, values, attn_mask=mask, scale=scale, enable_gqa=True
            ).transpose(0, 1)
        )
    return torch.cat(outs)


@pytest.mark.parametrize("layout", ["runs", "shared", "scattered"])
@pytest.mark.parametrize("backend", [VarlenAttention, in_rows(SingleTokenVarlen)], ids=["packed", "rows"])
def test_varlen_is_asked_for_the_right_keys(backend, layout, monkeypatch):
    """The kernel runs on CUDA alone (below); what it is given can be read by its documentation anywhere."""
    monkeypatch.setattr(varlen, "varlen_attn", documented_varlen)
    compare(backend, layout)


@needs_cuda
@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("layout", ["runs", "shared", "scattered"])
@pytest.mark.parametrize("backend", [VarlenAttention, in_rows(SingleTokenVarlen)], ids=["packed", "rows"])
def test_varlen_on_a_gpu(backend, layout, size):
    try:
        compare(backend, layout, torch.bfloat16, "cuda", size)
    except RuntimeError as error:
        if size % 256 and "256" in str(error):
            pytest.skip(f"the kernel of this device takes other pages: {error}")
        raise


@needs_cuda
@pytest.mark.parametrize("dtype", list(EXACT))
@pytest.mark.parametrize("layout", ["runs", "shared", "scattered"])
def test_flex_attention_on_a_gpu(layout, dtype):
    compare(gpu.FlexAttention, layout, dtype, "cuda", 64)


@pytest.mark.parametrize("layout", ["runs", "shared", "scattered"])
def test_flex_attention_reads_the_pages_of_the_tables(layout, monkeypatch):
    monkeypatch.setattr(gpu, "compiled_flex", lambda device_type: flex_attention)
    compare(gpu.FlexAttention, layout)


@pytest.mark.parametrize("name", get_args(AttentionName))
def test_a_named_backend_computes_plain_attention_or_is_refused(name):
    """Torch's compiled FlexAttention gives other numbers on CPUs without AVX-512; `varlen` does not run on a CPU."""
    pool = PagePool(KVGeometry.of(CONFIG), 40, SIZE, FULL, torch.float32, torch.device("cpu"))
    refused = ""
    try:
        assert deviation(attention_backend(name, pool), pool) <= TOLERANCE[torch.float32]
    except ConfigError as error:
        refused = str(error)
    if name == "varlen":
        assert refused.startswith("`streaming.attention` is varlen, which does not run on this cpu (")
    elif refused:
        assert name == "flex"
        assert "`streaming.attention` is flex, whose results on this cpu differ from plain attention by" in refused
    assert pool.counts().free == 40, "what was tried leaves pages behind"
    assert not any(pages.any() for pages in (*pool.keys, *pool.values))


@pytest.mark.parametrize("pages", [1, 2, 3, 40])
def test_a_backend_that_reads_other_keys_is_refused(pages, monkeypatch):
    """Whatever the pool holds; on a GPU `auto` passes it over."""

    def garbage(pool: PagePool, chunks: list[Chunk]) -> Attend:
        attend = CpuAttention(pool, chunks)
        return lambda query, keys, values, scaling: attend(query, keys.flip(1), values + 1, scaling)

    monkeypatch.setitem(BACKENDS, "flex", garbage)
    pool = PagePool(KVGeometry.of(CONFIG), pages, SIZE, 1, torch.float32, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"`streaming.attention` is flex, whose results on this cpu differ"):
        attention_backend("flex", pool)
    assert fastest({"flex": garbage, "sdpa": CpuAttention}, pool) == "sdpa"


def test_a_backend_that_gives_no_number_is_refused(monkeypatch):
    monkeypatch.setitem(
        BACKENDS, "flex", lambda pool, chunks: lambda query, keys, values, scaling: torch.full_like(query, torch.nan)
    )
    with pytest.raises(ConfigError, match="differ from plain attention by up to inf"):
        attention_backend("flex", PagePool(KVGeometry.of(CONFIG), 40, SIZE, FULL, torch.float32, torch.device("cpu")))


def test_attention_that_cannot_run_is_refused_before_there_is_a_model() -> None:
    """As a training's workers do before the first step: a kernel of another device, a missing compiler."""
    geometry, cpu_device = KVGeometry(layers=4, heads=2, head_dim=8, groups=2), torch.device("cpu")
    check_attention(StreamingSettings(), geometry, torch.float32, cpu_device)
    with pytest.raises(ConfigError, match=r"`streaming\.attention` is varlen, which does not run on this cpu"):
        check_attention(StreamingSettings(attention="varlen"), geometry, torch.float32, cpu_device)


def test_without_any_attention_the_reasons_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(pool: PagePool, chunks: object) -> AttentionBackend:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    pool = PagePool(KVGeometry(layers=1, heads=2, head_dim=8, groups=1), 6, 16, 3, torch.float32, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"flex does not run \(Failed to find C compiler.*\).*install gcc"):
        fastest({"flex": no_compiler}, pool)
