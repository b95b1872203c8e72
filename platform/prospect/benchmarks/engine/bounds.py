"""Lower bounds on a step's time: its linear layers and attention alone, and one read of the weights."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from prospect.benchmarks.engine.model import kv_shape
from prospect.model.interface import DSTModel

BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.04e12, "4090": 1.008e12, "3090": 0.936e12, "L4": 0.30e12}
"""Bytes a second of a GPU's memory, by a part of its name (vendors' data sheets)."""
_MOST_BYTES = 2 << 30
"""Most bytes of keys and values that attention is timed on; in larger models, layers share them."""
_SECONDS = 0.3


def bound_seconds(model: DSTModel, sessions: int, context: int) -> float:
    """Seconds of a step with one token of each session: linear layers, then attention."""
    return linear_seconds(model, sessions) + attention_seconds(model, sessions, context)


def weight_floor_seconds(model: DSTModel) -> float | None:
    """Seconds in which the device reads the layers' weights once; None for a device of unknown bandwidth."""
    if model.device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(model.device)
    speed = next((speed for part, speed in BANDWIDTH.items() if part in name), None)
    return weight_bytes(model) / speed if speed else None


def weight_bytes(model: DSTModel) -> int:
    """Of the layers, which a step reads once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.text.layers.parameters())


def copy_bandwidth(device: torch.device, num_bytes: int) -> float:
    """Bytes a second that the device's memory reads and writes, measured with a copy from one half to the other."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / _fastest(lambda: target.copy_(source), device)


@torch.inference_mode()
def linear_seconds(model: DSTModel, rows: int) -> float:
    """All seven projections of all layers on `rows` tokens."""
    weight = model.text.norm.weight
    layers: Any = model.text.layers
    projections = [m for layer in layers for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {
        width: torch.randn(rows, width, device=weight.device).to(weight.dtype)
        for width in {projection.in_features for projection in projections}
    }
    return _fastest(lambda: [projection(inputs[projection.in_features]) for projection in projections], weight.device)


@torch.inference_mode()
def attention_seconds(model: DSTModel, sessions: int, context: int) -> float:
    """Scaled dot products of all layers, one query a session over `context` keys: the faster of two ways."""
    config, weight = model.text_config, model.text.norm.weight
    heads, (shared, width) = config.num_attention_heads, kv_shape(model)
    size = 2 * sessions * shared * context * width * weight.element_size()
    copies = int(max(1, min(config.num_hidden_layers, _MOST_BYTES // size)))
    keys, values = (
        torch.randn(copies, sessions, shared, context, width, device=weight.device, dtype=weight.dtype)
        for _ in range(2)
    )
    query = torch.randn(sessions, heads, 1, width, device=weight.device, dtype=weight.dtype)
    grouped = query.view(sessions, shared, heads // shared, width)

    def attend(queries: torch.Tensor, share: bool) -> None:
        for layer in range(config.num_hidden_layers):
            at = layer % copies
            F.scaled_dot_product_attention(queries, keys[at], values[at], enable_gqa=share)

    ways = ((grouped, False), (query, heads != shared))
    return min(_fastest(lambda q=q, s=s: attend(q, s), weight.device) for q, s in ways)  # type: ignore[misc]


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """The fastest of at least four runs, which is the least disturbed one."""
    times: list[float] = []
    while len(times) < 4 or sum(times) < _SECONDS:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times)
