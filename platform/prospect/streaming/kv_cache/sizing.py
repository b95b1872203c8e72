"""Size the KV cache: how many pages fit into the memory that is free."""

import gc

import psutil
import torch

from prospect.errors import OutOfPagesError
from prospect.model.interface import DSTModel
from prospect.streaming.kv_cache.pool import PagePool
from prospect.streaming.settings import StreamingSettings

PAGE = 64
"""Tokens in a page: a small one wastes little of a session's last."""
FLASH_PAGE = 256
"""Tokens in a page of which Flash Attention 2 takes a multiple."""
CUDNN_PAGES = {9, 10}
"""Major compute capabilities on which cuDNN runs `varlen`, with pages of any power of two: Hopper and data-centre
Blackwell. Elsewhere Flash Attention 2 does (see docs/engine.md)."""


def make_pool(model: DSTModel, settings: StreamingSettings, max_seq_len: int) -> PagePool:
    """Make a pool for `max_sessions` sessions of `max_seq_len` tokens, or for as many as `memory_share` holds.

    Raises:
        OutOfPagesError: not even one session fits.
    """
    weight = model.text.norm.weight
    size = page_size(settings, weight.device)
    full = -(-max_seq_len // size)
    num_bytes = bytes_per_token(model) * size
    wanted = settings.max_sessions * full
    if settings.pages is None and _free_bytes(weight.device) * settings.memory_share < wanted * num_bytes:
        gc.collect()  # may free the pool of an engine that is no longer used
    room = int(_free_bytes(weight.device) * settings.memory_share) // num_bytes
    pages = settings.pages or min(wanted, room)
    if pages < full:
        raise OutOfPagesError(
            f"streaming.pages: {pages} pages of {size} tokens cannot hold a session of "
            f"{max_seq_len}; lower context.max_seq_len or free memory",
            field="pages",
        )
    return PagePool(model.kv_geometry, pages, size, full, weight.dtype, weight.device)


def page_size(settings: StreamingSettings, device: torch.device) -> int:
    """Tokens in a page: as configured, or what suits the device's attention."""
    if settings.page_tokens is not None:
        return settings.page_tokens
    if device.type != "cuda" or settings.attention not in ("auto", "varlen"):
        return PAGE
    return PAGE if torch.cuda.get_device_capability(device)[0] in CUDNN_PAGES else FLASH_PAGE


def bytes_per_token(model: DSTModel) -> int:
    """Return how many bytes of the cache one token takes."""
    return model.kv_geometry.bytes_per_token(model.text.norm.weight.element_size())


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch keeps it for us
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available
