"""The core step on a GPU with the geometry of Llama-3.2-3B and random weights: speed, utilisation and memory.

Needs neither DeepSpeed nor Ray nor weights. `python -m prospect.benchmarks.train.gpu` runs it alone.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from prospect.benchmarks.settings import TrainSuite
from prospect.model.adapters import adapt, unwrap
from prospect.model.geometry import base_geometry, empty_model
from prospect.model.settings import ModelSettings
from prospect.training.activations import fake_batch
from prospect.training.backend import PlainBackend
from prospect.training.checks import GIB
from prospect.training.loop import MicroBatch, StepBatch, train_step
from prospect.training.memory_plan import plan_plain
from prospect.training.settings import TrainingSettings

BASE = "meta-llama/Llama-3.2-3B-Instruct"
DENSE_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12}
"""Peak operations a second of dense bfloat16, by a part of the device's name (vendors' data sheets)."""
WARM_UP, CLIPS = 3, 4


@dataclass(frozen=True)
class GpuResult:
    """One way on one device.

    Attributes:
        utilisation: of the device's dense peak (MFU, recomputation not counted), None where that is not known.
        peak_bytes: allocated by torch; `planned_bytes` what the memory plan said.
    """

    name: str
    tokens_per_second: float
    utilisation: float | None
    peak_bytes: int
    planned_bytes: int


def measure_geometry(suite: TrainSuite, base: str = BASE, device: str = "cuda") -> Iterator[GpuResult]:
    """LoRA of rank 128 at `suite.gpu_tokens` in packed clips: checkpointed, under the cap, and without a cap.

    Ways that the memory plan has no room for on this device are left out.
    """
    settings = ModelSettings(base=base, dtype="bfloat16")
    total = torch.cuda.get_device_properties(device).total_memory if device == "cuda" else 0
    for name, checkpointed, cap in (
        ("checkpointed", True, None),
        (f"checkpointed, capped at {suite.gpu_cap:g} GiB", True, suite.gpu_cap * GIB),
        ("all activations kept", False, None),
    ):
        training = TrainingSettings(activation_checkpointing=checkpointed)
        lengths = (suite.gpu_tokens // CLIPS,) * CLIPS
        planned = plan_plain(settings, training, lengths, suite.vision_dim)
        if device == "cuda":
            if planned.peak > total:
                continue
            torch.cuda.set_per_process_memory_fraction(min(1.0, cap / total) if cap else 1.0)
        yield _measure(name, settings, training, lengths, suite, device, planned.peak)


def _measure(
    name: str,
    settings: ModelSettings,
    training: TrainingSettings,
    lengths: tuple[int, ...],
    suite: TrainSuite,
    device: str,
    planned: int,
) -> GpuResult:
    model = empty_model(base_geometry(settings), settings, suite.vision_dim).to_empty(device=device)
    model.tie_weights()
    for tensor in [*model.parameters(), *model.buffers()]:
        nn.init.normal_(tensor, std=0.02)
    model.text.rotary_emb = type(model.text.rotary_emb)(model.text_config).to(device)
    backend = PlainBackend(adapt(model, settings), training, device)
    batch = fake_batch(lengths, suite.vision_dim)
    batch.input_ids[0, : len(batch.frames)] = unwrap(model).config.grammar_ids["<image>"]
    batch.frames.normal_()
    batch.decisions, batch.text_positions = (
        torch.arange(len(each)) for each in (batch.decisions, batch.text_positions)
    )
    for _ in range(min(WARM_UP, suite.gpu_steps)):
        train_step(backend, StepBatch([MicroBatch(batch)], 1e-5), training)
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for _ in range(suite.gpu_steps):
        train_step(backend, StepBatch([MicroBatch(batch)], 1e-5), training)
    if on_gpu:
        torch.cuda.synchronize()
    speed = suite.gpu_steps * batch.num_tokens / (time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    device_name = torch.cuda.get_device_name() if on_gpu else device
    most = next((operations for part, operations in DENSE_BF16.items() if part in device_name), None)
    used = speed * operations_per_token(model, max(lengths)) / most if most else None
    return GpuResult(name, speed, used, peak, planned)


def operations_per_token(model: nn.Module, length: int) -> float:
    """2 for each weight that a token meets in the forward pass, as much for the way back, and for what trains again.

    Attention adds half of `length` keys and values for a token, forwards and twice as much backwards.
    """
    config = unwrap(model).config  # type: ignore[arg-type]
    matrices = [
        (parameter.numel(), parameter.requires_grad)
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
    ]
    dense = sum(count * (6 if trains else 4) for count, trains in matrices)
    return dense + 3 * 2 * config.num_hidden_layers * config.hidden_size * length


def render(results: Iterable[GpuResult]) -> Table:
    """One row a way."""
    table = Table(title="Llama-3.2-3B geometry, LoRA 128, one device", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("way")
    for name in ("tokens/s", "MFU", "peak, GiB", "planned, GiB"):
        table.add_column(name, justify="right")
    for each in results:
        used = "-" if each.utilisation is None else f"{each.utilisation:.0%}"
        peak, planned = (f"{size / GIB:.1f}" for size in (each.peak_bytes, each.planned_bytes))
        table.add_row(each.name, f"{each.tokens_per_second:,.0f}", used, peak, planned)
    return table


if __name__ == "__main__":
    Console().print(render(measure_geometry(TrainSuite())))
