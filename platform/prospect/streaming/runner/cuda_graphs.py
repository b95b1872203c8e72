"""CUDA graphs: steps of few tokens on a GPU, each launched as one captured graph.

A GPU finishes a step of a few frames before a CPU has launched its kernels one by one.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from prospect.model.interface import DSTModel
from prospect.streaming.attention.gpu import VarlenOverPages
from prospect.streaming.attention.interface import Chunk
from prospect.streaming.kv_cache.pool import PagePool
from prospect.streaming.runner.forward import Trunk
from prospect.streaming.runner.static import StaticBuffers, StaticPass

log = logging.getLogger(__name__)

LONGEST_CHUNK = 16
"""Longest chunk that runs in a graph, which reads a session's keys once for each of the chunk's tokens."""
_WARM_UPS = 3
"""Passes before a capture, in which libraries choose kernels and allocate memory that they keep."""


class GraphedTrunk:
    """Runs a step of short chunks in the smallest captured pass that holds it, any other step by `packed`.

    Args:
        packed: for all other steps.
        passes: by rising number of rows.
    """

    def __init__(self, packed: Trunk, passes: Sequence[StaticPass]) -> None:
        self._packed, self._passes = packed, passes
        self.attention = packed.attention

    def __call__(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        lengths = [chunk.num_tokens for chunk in chunks]
        fitting = next((each for each in self._passes if each.num_rows >= sum(lengths)), None)
        if fitting is None or max(lengths) > LONGEST_CHUNK:
            return self._packed(chunks)
        return fitting(chunks)


class CapturedPass(StaticPass):
    """A `StaticPass` as a CUDA graph, captured over padding when it is made.

    Args:
        model: whose trunk runs.
        pool: of pages.
        num_rows: R.
        num_keys: of a full session.
        larger: a pass whose memory this one shares, since they never run at once.
    """

    def __init__(
        self,
        model: DSTModel,
        pool: PagePool,
        num_rows: int,
        num_keys: int,
        larger: "CapturedPass | None",
    ) -> None:
        super().__init__(model, pool, num_rows, num_keys, SingleTokenVarlen)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                super()._hidden()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=larger._graph.pool() if larger is not None else None):
            self._captured = super()._hidden()

    def _hidden(self) -> Tensor:
        self._graph.replay()
        return self._captured.clone()  # the next replay overwrites it


@torch.inference_mode()
def captured_passes(model: DSTModel, pool: PagePool, buckets: Sequence[int], num_keys: int) -> list[StaticPass]:
    """Capture a pass for each number of rows in `buckets`; return them in rising order."""
    passes: list[CapturedPass] = []
    for rows in sorted(set(buckets), reverse=True):
        passes.append(CapturedPass(model, pool, rows, num_keys, passes[0] if passes else None))
    log.info("captured CUDA graphs for steps of up to %s tokens", [each.num_rows for each in passes])
    return list(reversed(passes))


class SingleTokenVarlen(VarlenOverPages):
    """Varlen attention of a static pass: each row is a sequence with one query."""

    def __init__(self, pool: PagePool, buffers: StaticBuffers) -> None:
        starts = torch.arange(len(buffers) + 1, dtype=torch.int32, device=pool.device)
        super().__init__(
            starts, 1, (buffers.positions + 1).int(), buffers.tables.shape[1] * pool.page_size, buffers.tables
        )
