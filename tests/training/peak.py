"""Measures, for tests: trains small random models on the CPU, each in a forked process, and prints peak and plan."""

import ctypes
import json
import os
from pathlib import Path

import torch

from prospect.model.adapters import adapt
from prospect.model.configuration import LoraSettings, ModelSettings, TinyGeometry
from prospect.model.geometry import base_geometry, empty_model
from prospect.training.activations import fake_batch
from prospect.training.backend import PlainBackend
from prospect.training.plan import plan_plain
from prospect.training.settings import TrainingSettings

TINY = TinyGeometry(hidden_size=512, intermediate_size=1536, num_layers=6, num_heads=8, vocab_size=8192)
LENGTHS = (700, 300, 500)
VISION_DIM = 64
CASES = {
    "lora": ("lora", False, "float32"),
    "lora, checkpointed": ("lora", True, "float32"),
    "full": ("full", False, "float32"),
    "full, bfloat16": ("full", False, "bfloat16"),
}


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def train(settings: ModelSettings, training: TrainingSettings) -> None:
    """Two steps of random weights on made-up labels."""
    model = empty_model(base_geometry(settings), settings, VISION_DIM).to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        torch.nn.init.normal_(tensor, std=0.02)
    backend = PlainBackend(adapt(model, settings), training)
    backend.model.train()
    backend.model.checkpoint_layers(training.activation_checkpointing)
    batch = fake_batch(LENGTHS, VISION_DIM)
    batch.input_ids[0, : len(batch.frames)] = backend.model.config.grammar_ids["<image>"]
    for _ in range(2):
        backend.backward(backend.loss_sums(batch, training.losses).sum() * 1e-9)
        backend.step(1e-6)


def measure(way: str, checkpointed: bool, dtype: str) -> dict[str, float]:
    """Bytes at the peak, above what is there after a model a hundredth the size was trained."""
    settings = ModelSettings(adaptation=way, dtype=dtype, tiny=TINY, lora=LoraSettings(r=32))
    training = TrainingSettings(activation_checkpointing=checkpointed)
    train(settings.model_copy(update={"tiny": TinyGeometry(hidden_size=16, intermediate_size=32)}), training)
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    train(settings, training)
    planned = plan_plain(settings, training, LENGTHS, VISION_DIM)
    return {"planned": planned.peak, "measured": status("VmHWM") - before}


def main() -> None:
    for name, case in CASES.items():
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, json.dumps(measure(*case)).encode())
            os._exit(0)
        os.close(write)
        print(json.dumps({"name": name, **json.loads(os.read(read, 4096))}), flush=True)


if __name__ == "__main__":
    main()
