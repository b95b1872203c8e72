"""Pages: whatever sessions do, each is in exactly the tables that hold it, and none is left when they are gone."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from prospect.errors import OutOfPagesError
from prospect.model.interface import KVGeometry
from prospect.streaming.kv_cache.block_table import BlockTable
from prospect.streaming.kv_cache.pool import PageCounts, PagePool

CONFIG = LlamaConfig(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, hidden_size=8, vocab_size=8)
SIZE, FULL = 4, 5


def small_pool(pages: int = 20) -> PagePool:
    return PagePool(KVGeometry.of(CONFIG), pages, SIZE, FULL, torch.float32, torch.device("cpu"))


class _Sessions:
    """Tables beside plain lists of what they should hold: a key tells the token and everything before it."""

    def __init__(self) -> None:
        self.pool = small_pool()
        self.tables: dict[int, tuple[BlockTable, list[int]]] = {}

    def open(self, name: int, ids: list[int]) -> None:
        table, held = BlockTable(self.pool, SIZE * FULL), []
        self.tables[name] = table, held
        if (hidden := table.reuse_prefix(ids)) is not None:
            assert hidden[:, 0].tolist() == [float(_content(ids[: t + 1])) for t in range(table.length)]
            held += ids[: table.length]
        self.feed(name, ids[len(held) :])
        table.share_prefix(ids, torch.tensor([[float(_content(held[: t + 1]))] for t in range(len(held))]))

    def feed(self, name: int, ids: list[int]) -> None:
        table, held = self.tables[name]
        ids = ids[: SIZE * FULL - len(held)]
        table.reserve(len(ids))
        held += ids
        for slot, t in zip(table.slots(table.length, len(ids)), range(table.length, len(held)), strict=True):
            self.pool.keys[0].flatten(0, 1)[slot] = _content(held[: t + 1])
        table.commit(len(ids))

    def truncate(self, name: int, share: float) -> None:
        table, held = self.tables[name]
        del held[int(len(held) * share) :]
        table.truncate(len(held))

    def close(self, name: int) -> None:
        self.tables.pop(name)[0].truncate(0)

    def check(self) -> None:
        in_tables = [page for table, _ in self.tables.values() for page in table.pages]
        counts = self.pool.counts()
        assert counts.used == len(set(in_tables))
        assert counts.shared == sum(in_tables.count(page) > 1 for page in set(in_tables))
        assert counts.used + counts.cached + counts.free == self.pool.num_pages
        for table, held in self.tables.values():
            assert (table.length, len(table.pages)) == (len(held), self.pool.pages_for(len(held)))
            rows = self.pool.keys[0].flatten(0, 1)
            runs = [rows[first : first + count] for first, count in table.extents(table.length)]
            found = torch.cat(runs)[:, 0, 0].tolist() if runs else []
            assert found == [float(_content(held[: t + 1])) for t in range(len(held))]


def _content(ids: list[int]) -> int:
    """A number for a token behind its past, small enough for float32."""
    return hash(tuple(ids)) % 1_000_003


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.integers(0, 3), st.lists(st.integers(0, 1), max_size=14)),
        st.tuples(st.just("feed"), st.integers(0, 3), st.lists(st.integers(0, 1), min_size=1, max_size=6)),
        st.tuples(st.just("truncate"), st.integers(0, 3), st.floats(0, 1)),
        st.tuples(st.just("close"), st.integers(0, 3), st.none()),
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=150, deadline=None)
def test_every_table_keeps_its_own_tokens_and_every_page_is_counted(steps):
    sessions = _Sessions()
    for action, name, argument in steps:
        if (action == "open") != (name in sessions.tables):
            getattr(sessions, action)(*((name,) if argument is None else (name, argument)))
        sessions.check()
    for name in list(sessions.tables):
        sessions.close(name)
    counts = sessions.pool.counts()
    assert (counts.used, counts.shared, counts.cached + counts.free) == (0, 0, 20)


def test_sessions_get_stretches_of_their_own_and_give_way_to_one_who_needs_the_last_page():
    pool = small_pool()
    tables = [BlockTable(pool, SIZE * FULL) for _ in range(4)]
    for _ in range(FULL):
        for table in tables:
            table.reserve(SIZE)
            table.commit(SIZE)
    assert [table.pages[0] for table in tables] == [0, 5, 10, 15]
    assert all(len(list(table.extents(table.length))) == 1 for table in tables)
    with pytest.raises(OutOfPagesError, match="all 20 pages of 4 tokens are in use"):
        BlockTable(pool, SIZE).reserve(1)
    tables[0].share_prefix(list(range(8)), torch.zeros(8, 1))
    tables[0].truncate(0)
    assert pool.counts() == PageCounts(used=15, shared=0, cached=2, free=3)
    other = BlockTable(pool, SIZE * FULL)
    other.reserve(SIZE * FULL)
    assert sorted(other.pages) == [0, 1, 2, 3, 4]
    assert pool.counts() == PageCounts(used=20, shared=0, cached=0, free=0)


def test_a_shared_page_is_copied_before_it_is_written():
    pool = small_pool()
    first, second = BlockTable(pool, SIZE * FULL), BlockTable(pool, SIZE * FULL)
    first.reserve(8)
    pool.keys[0].flatten(0, 1)[:8] = torch.arange(8.0).view(8, 1, 1)
    first.commit(8)
    first.share_prefix(list(range(8)), torch.zeros(8, 1))
    second.reuse_prefix([*range(8), 99])
    assert second.pages == first.pages
    second.truncate(6)
    second.reserve(1)
    assert second.pages[0] == first.pages[0]
    assert second.pages[1] != first.pages[1]
    assert pool.keys[0][second.pages[1], :2, 0, 0].tolist() == [4.0, 5.0]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pool_takes_memory_as_its_pages_are_written(dtype: torch.dtype) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident()
    pool = PagePool(KVGeometry.of(CONFIG), 2**20, 64, FULL, dtype, torch.device("cpu"))
    whole = pool.num_pages * pool.bytes_per_page
    assert whole >= 2**30
    assert resident() - before < whole / 20
    assert pool.keys[0][123].eq(0).all()
    for page in range(0, 1000):
        pool.keys[0][page] = 1.0
    assert resident() - before < whole / 20
    assert pool.keys[0][:1000].eq(1).all()
    assert pool.keys[0][1000].eq(0).all()
