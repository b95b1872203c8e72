"""A pass of a fixed number of rows gives what a packed one gives, and a graph's trunk takes the smallest that fits."""

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from prospect.streaming.backends import fastest
from prospect.streaming.graphs import LONGEST_CHUNK, GraphedTrunk, captured_passes
from prospect.streaming.paged import VarlenAttention
from prospect.streaming.pages import BlockTable, PagePool
from prospect.streaming.passes import Chunk, PackedTrunk
from prospect.streaming.rows import FixedAttention, RowPass
from prospect.streaming.runs import RunAttention
from tests.factories import features, needs_cuda, tiny_model, tiny_vocabulary

SIZE, FULL = 8, 6


@pytest.fixture(scope="module")
def model():
    return tiny_model(tiny_vocabulary()).model


def empty_pool(model) -> PagePool:
    return PagePool(model.config, 4 * FULL, SIZE, FULL, torch.float32, torch.device("cpu"))


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
        lambda pool: PackedTrunk(model, pool, RunAttention),
        lambda pool: RowPass(model, pool, 32, SIZE * FULL, FixedAttention),
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
        pool = PagePool(model.config, 4 * FULL, 256, FULL, torch.bfloat16, torch.device("cuda"))
        trunk = PackedTrunk(gpu, pool, VarlenAttention)
        if graphed:
            trunk = GraphedTrunk(trunk, captured_passes(gpu, pool, [4, 8], 256 * FULL))
        found.append(hidden_states(trunk, chunks_of(pool, image)))
    for packed, rows in zip(*found, strict=True):
        assert packed.shape == rows.shape
        assert (packed - rows).abs().max() <= 3e-2 * packed.abs().max()


class _Noted:
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
            attend = RunAttention(pool, parts)
        return attend

    pool = empty_pool(model)
    assert fastest({"varlen": broken, "flex": slow, "sdpa": RunAttention}, pool) == "sdpa"
    assert "varlen does not run here: no kernel for this device" in caplog.text
    assert pool.counts().used == 0
    with pytest.raises(RuntimeError, match="none of the attention backends varlen runs on cpu"):
        fastest({"varlen": broken}, pool)
