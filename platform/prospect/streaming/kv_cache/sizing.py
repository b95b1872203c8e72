"""Size the KV cache: how many pages fit into the memory that is free."""

import gc

import psutil
import torch

from prospect.errors import OutOfPagesError
from prospect.model.interface import DSTModel
from prospect.streaming.kv_cache.pool import PagePool
from prospect.streaming.settings import StreamingSettings


def make_pool(model: DSTModel, settings: StreamingSettings, max_seq_len: int) -> PagePool:
    """Make a pool for `max_sessions` sessions of `max_seq_len` tokens, or for as many as `memory_share` holds.

    Raises:
        OutOfPagesError: not even one session fits.
    """
    weight = model.text.norm.weight
    full = -(-max_seq_len // settings.page_tokens)
    num_bytes = bytes_per_token(model) * settings.page_tokens
    wanted = settings.max_sessions * full
    if settings.pages is None and _free_bytes(weight.device) * settings.memory_share < wanted * num_bytes:
        gc.collect()  # may free the pool of an engine that is no longer used
    room = int(_free_bytes(weight.device) * settings.memory_share) // num_bytes
    pages = settings.pages or min(wanted, room)
    if pages < full:
        raise OutOfPagesError(
            f"streaming.pages: {pages} pages of {settings.page_tokens} tokens cannot hold a session of "
            f"{max_seq_len}; lower context.max_seq_len or free memory",
            field="pages",
        )
    return PagePool(model.kv_geometry, pages, settings.page_tokens, full, weight.dtype, weight.device)


def bytes_per_token(model: DSTModel) -> int:
    """Return how many bytes of the cache one token takes."""
    return model.kv_geometry.bytes_per_token(model.text.norm.weight.element_size())


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch keeps it for us
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available
