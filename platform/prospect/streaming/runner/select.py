"""Select how an engine runs the trunk: packed, as CUDA graphs, or in fixed shapes (`streaming.deterministic`)."""

from prospect.model.interface import DSTModel
from prospect.streaming.attention.select import BACKENDS, attention_backend
from prospect.streaming.kv_cache.pool import PagePool
from prospect.streaming.runner.cuda_graphs import GraphedTrunk, captured_passes
from prospect.streaming.runner.forward import PackedTrunk, Trunk
from prospect.streaming.runner.scheduler import Scheduler
from prospect.streaming.runner.static import DeterministicTrunk
from prospect.streaming.settings import StreamingSettings

SHARED_ON_CPU = 64
"""Tokens of long texts beside other sessions' frames: on a CPU each delays them."""


def scheduler_of(settings: StreamingSettings, device: str) -> Scheduler:
    """Make the scheduler that `settings` ask for, on a device of a type."""
    shared = settings.shared_tokens
    if shared is None:
        shared = SHARED_ON_CPU if device == "cpu" else settings.chunk_tokens
    return Scheduler(settings.step_tokens, settings.chunk_tokens, shared, settings.patience)


def make_trunk(model: DSTModel, pool: PagePool, settings: StreamingSettings, max_seq_len: int) -> Trunk:
    """Make the trunk that `settings` ask for."""
    if settings.deterministic:
        return DeterministicTrunk(model, pool, settings.deterministic_rows, max_seq_len)
    backend = attention_backend(settings.attention, pool)
    packed = PackedTrunk(model, pool, backend)
    if pool.device.type != "cuda" or backend is not BACKENDS["varlen"] or not settings.graph_rows:
        return packed
    return GraphedTrunk(packed, captured_passes(model, pool, settings.graph_rows, max_seq_len))
