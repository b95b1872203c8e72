"""A pass of a fixed number of rows gives what a packed one gives, and a graph's trunk takes the smallest that fits."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, varlen

from prospect.errors import ConfigError
from prospect.streaming.attention.cpu import CpuAttention
from prospect.streaming.attention.gpu import VarlenAttention
from prospect.streaming.attention.interface import Chunk
from prospect.streaming.attention.select import fastest
from prospect.streaming.kv_cache.block_table import BlockTable
from prospect.streaming.kv_cache.pool import PagePool
from prospect.streaming.runner.cuda_graphs import LONGEST_CHUNK, GraphedTrunk, SingleTokenVarlen, captured_passes
from prospect.streaming.runner.forward import PackedTrunk
from prospect.streaming.runner.static import FixedAttention, StaticPass
from tests.factories import features, tiny_model, tiny_vocabulary
from tests.needs import needs_cuda

SIZE, FULL = 8, 6


@pytest.fixture(scope="module")
def model():
    return tiny_model(tiny_vocabulary()).model


def empty_pool(model) -> PagePool:
    return PagePool(model.kv_geometry, 4 * FULL, SIZE, FULL, torch.float32, torch.device("cpu"))


def chunks_of(pool: PagePool, image: int) -> list[list[Chunk]]:
    """Three sessions in three steps: contexts, frames beside text, and a chunk of two frames with words between."""
    tables = [BlockTable(pool, pool.page_size * FULL) for _ in range(3)]
    frames = features("tea", 0, 4)
    fed: list[list[tuple[list[int], np.ndarray | None]]] = [
        [(list(range(20, 20 + length)), None) for length in (3, 17, 9)],
        [([image], frames[0]), ([33], None), ([image], frames[1])],
        [([41, 42], None), ([image, 50, image], np.concatenate(frames[2:4])), ([43], None)],
    ]
    return [[Chunk(t, ids, rows) for t, (ids, rows) in zip(tables, step, strict=True)] for step in fed]


def hidden_states(trunk, steps: Sequence[Sequence[Chunk]]) -> list[Tensor]:
    found = []
    for chunks in steps:
        for chunk in chunks:
            chunk.table.reserve(len(chunk.ids))
        with torch.inference_mode():
            found += trunk(chunks)
    return found


def test_rows_give_what_a_packed_pass_gives(model):
    image = model.config.grammar_ids["<image>"]
    found = []
    for make in (
        lambda pool: PackedTrunk(model, pool, CpuAttention),
        lambda pool: StaticPass(model, pool, 32, SIZE * FULL, FixedAttention),
    ):
        pool = empty_pool(model)
        found.append(hidden_states(make(pool), chunks_of(pool, image)))
    for packed, rows in zip(*found, strict=True):
        assert packed.shape == rows.shape
        assert (packed - rows).abs().max() <= 1e-5


@needs_cuda
def test_captured_graphs_give_what_a_packed_pass_gives(model):
    """Replayed for other tables and other numbers of rows than they were captured with."""
    gpu = copy.deepcopy(model).to("cuda", torch.bfloat16).eval()
    image = model.config.grammar_ids["<image>"]
    found = []
    for graphed in (False, True):
        pool = PagePool(model.kv_geometry, 4 * FULL, 256, FULL, torch.bfloat16, torch.device("cuda"))
        trunk = PackedTrunk(gpu, pool, VarlenAttention)
        if graphed:
            trunk = GraphedTrunk(trunk, captured_passes(gpu, pool, [4, 8], 256 * FULL))
        found.append(hidden_states(trunk, chunks_of(pool, image)))
    for packed, rows in zip(*found, strict=True):
        assert packed.shape == rows.shape
        assert (packed - rows).abs().max() <= 3e-2 * packed.abs().max()


@pytest.mark.parametrize("kernel", [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION])
def test_what_a_graph_captures_reads_nothing_on_the_host_and_calls_torch_as_torch_wants(model, kernel, monkeypatch):
    """With fake CUDA tensors, which have no values to read: a pass that asks for one cannot be captured either."""
    cudnn = kernel == SDPBackend.CUDNN_ATTENTION
    monkeypatch.setattr(
        varlen, "_cudnn_version_and_major_capability", lambda device: (92400, 9) if cudnn else (None, 8)
    )
    monkeypatch.setattr(varlen, "_should_use_cudnn", lambda device: cudnn)
    monkeypatch.setattr(varlen, "_cudnn_decode_disabled", lambda device: False)
    chosen = []
    select = varlen._select_backend
    monkeypatch.setattr(varlen, "_select_backend", lambda *args: chosen.append(select(*args)) or chosen[-1])
    model = copy.deepcopy(model).to(torch.bfloat16).eval()
    pool = PagePool(model.kv_geometry, 4, 256, FULL, torch.bfloat16, torch.device("cpu"))
    rows = StaticPass(model, pool, 4, 256 * FULL, SingleTokenVarlen)
    with FakeTensorMode() as mode, torch.no_grad():

        def on_cuda(tensor: Tensor) -> Tensor:
            return mode.from_tensor(tensor).to("cuda")

        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, torch.nn.Parameter(on_cuda(weight), requires_grad=False))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, on_cuda(buffer))
        pool.keys, pool.values = ([on_cuda(pages) for pages in layers] for layers in (pool.keys, pool.values))
        for name in ("tokens", "frames", "positions", "slots", "tables"):
            setattr(rows._buffers, name, on_cuda(getattr(rows._buffers, name)))
        hidden = rows._hidden()
    assert (hidden.shape, hidden.device.type) == ((4, model.text_config.hidden_size), "cuda")
    assert chosen == [kernel.value] * model.text_config.num_hidden_layers


class _Noted:
    attention = "none"

    def __init__(self, num_rows: int, taken: list[int]) -> None:
        self.num_rows, self._taken = num_rows, taken

    def __call__(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        self._taken.append(self.num_rows)
        return []


def test_a_step_runs_in_the_smallest_graph_and_long_ones_without(model):
    taken: list[int] = []
    trunk = GraphedTrunk(_Noted(0, taken), [_Noted(rows, taken) for rows in (1, 4, 64)])
    table = BlockTable(empty_pool(model), SIZE * FULL)
    steps = [[1], [1, 1], [4], [3, 2], [1] * 64, [1] * 65, [LONGEST_CHUNK, 1], [LONGEST_CHUNK + 1, 1]]
    for lengths in steps:
        trunk([Chunk(table, [0] * length) for length in lengths])
    assert taken == [1, 4, 4, 64, 64, 0, 64, 0]


def test_the_fastest_backend_is_measured_and_one_that_does_not_run_is_said(model, caplog):
    def broken(pool, parts):
        raise RuntimeError("no kernel for this device")

    def slow(pool, parts):
        for _ in range(50):
            attend = CpuAttention(pool, parts)
        return attend

    pool = empty_pool(model)
    assert fastest({"varlen": broken, "flex": slow, "sdpa": CpuAttention}, pool) == "sdpa"
    assert "varlen does not run (no kernel for this device); sdpa is used instead" in caplog.text
    assert pool.counts().used == 0
    with pytest.raises(ConfigError, match="finds no attention for cpu: varlen does not run"):
        fastest({"varlen": broken}, pool)
