"""Measures, for tests: trains small random models on the CPU, each in a forked process, and prints peak and plan.

`python -m tests.training.peak plain` has those without DeepSpeed, `first` the first of them, `zero` the others.
"""

import ctypes
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from prospect.model.adapters import adapt
from prospect.model.geometry import base_geometry, empty_model
from prospect.model.settings import LoraSettings, ModelSettings, TinyGeometry
from prospect.training.activations import fake_batch
from prospect.training.backend import PlainBackend, TrainingBackend
from prospect.training.memory_plan import plan_plain, plan_zero
from prospect.training.settings import TrainingSettings

TINY = TinyGeometry(hidden_size=512, intermediate_size=1536, num_layers=6, num_heads=8, vocab_size=8192)
LENGTHS = {"float32": (210, 90, 150), "bfloat16": (70, 30, 50)}
"""Tokens of the clips; a CPU without bfloat16 computes it ten times slower, and weights are as many."""
VISION_DIM = 64
CASES = {
    "lora, checkpointed": ("lora", True, "float32", 0),
    "full": ("full", False, "float32", 0),
    "lora": ("lora", False, "float32", 0),
    "full, bfloat16": ("full", False, "bfloat16", 0),
    "ZeRO-2, lora, checkpointed": ("lora", True, "float32", 2),
    "ZeRO-2, full, bfloat16": ("full", False, "bfloat16", 2),
    "ZeRO-3, full, bfloat16": ("full", False, "bfloat16", 3),
}
"""What trains, whether activations are computed again, in which type, and the stage of ZeRO, 0 for none."""


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def train(settings: ModelSettings, training: TrainingSettings, zero: bool) -> None:
    """Two steps of random weights on made-up labels."""
    model = empty_model(base_geometry(settings), settings, VISION_DIM).to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        torch.nn.init.normal_(tensor, std=0.02)
    adapted = adapt(model, settings)
    backend = _zero(settings, training, adapted) if zero else PlainBackend(adapted, training)
    backend.model.train()
    backend.model.checkpoint_layers(training.activation_checkpointing)
    batch = fake_batch(LENGTHS[settings.dtype], VISION_DIM)
    batch.input_ids[0, : len(batch.frames)] = backend.model.config.grammar_ids["<image>"]
    for _ in range(2):
        backend.backward(backend.loss_sums(batch, training.losses).sum() * 1e-9)
        backend.step(1e-6)


def _zero(settings: ModelSettings, training: TrainingSettings, model: torch.nn.Module) -> TrainingBackend:
    """One rank with DeepSpeed, which takes seconds to import."""
    from prospect.training.zero import ZeroBackend

    return ZeroBackend(model, training, settings.dtype, torch.device("cpu"))


def measure(way: str, checkpointed: bool, dtype: str, stage: int) -> dict[str, float]:
    """Bytes at the peak, above what is there after a model a hundredth the size was trained."""
    settings = ModelSettings(adaptation=way, dtype=dtype, tiny=TINY, lora=LoraSettings(r=32))
    zero = {"zero_stage": stage} if stage else {}
    training = TrainingSettings(activation_checkpointing=checkpointed, num_workers=1, **zero)
    if stage:
        meeting = f"file://{tempfile.mkdtemp()}/meeting"
        dist.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    small = TinyGeometry(hidden_size=16, intermediate_size=32)
    train(settings.model_copy(update={"tiny": small}), training, stage > 0)
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    train(settings, training, stage > 0)
    planned = (plan_zero if stage else plan_plain)(settings, training, LENGTHS[dtype], VISION_DIM)
    return {"planned": planned.peak, "measured": status("VmHWM") - before}


def main() -> None:
    os.environ.update(DS_ACCELERATOR="cpu", RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    plain, zero = ([name for name, (*_, stage) in CASES.items() if bool(stage) is deep] for deep in (False, True))
    for name in {"first": plain[:2], "plain": plain, "zero": zero}[sys.argv[1]]:
        case = CASES[name]
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, json.dumps(measure(*case)).encode())
            os._exit(0)
        os.close(write)
        print(json.dumps({"name": name, **json.loads(os.read(read, 4096))}), flush=True)


if __name__ == "__main__":
    main()
