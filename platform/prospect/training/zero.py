"""DeepSpeed ZeRO inside a Ray Train worker. Imported by worker processes only, see `worker.enter`."""

import json
import logging
import os
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.ops
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import Checkpoint
from ray.train.torch import get_device
from torch import Tensor, nn

from prospect.errors import CheckpointError
from prospect.model.adapters import unwrap
from prospect.training.loop import TrainingError, TrainingSettings, make_optimizer, set_learning_rate
from prospect.training.worker import WorkerJob, work

_TAG, _STATE = "zero", "progress.json"


def zero_config(settings: TrainingSettings, dtype: str) -> dict[str, Any]:
    """DeepSpeed's configuration. How many micro-batches make a step is the caller's business, step by step."""
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": settings.max_grad_norm,
        "zero_optimization": {"stage": settings.zero_stage},
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000_000,
    }


class ZeroBackend:
    """A `Backend` around a DeepSpeed engine; needs an initialised process group."""

    def __init__(self, model: nn.Module, settings: TrainingSettings, dtype: str, device: torch.device) -> None:
        """Every rank passes the same weights; `dtype` is theirs: `float32` or `bfloat16`."""
        if device.type == "cpu":
            # Its shared-memory collectives are compiled on first use, and without a compiler there is no training.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.engine, self._optimizer, *_ = deepspeed.initialize(
            model=model.to(device), optimizer=make_optimizer(model, settings), config=zero_config(settings, dtype)
        )
        self.model = unwrap(self.engine.module)
        self.device = device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss * self.world_size)  # DeepSpeed averages over ranks

    def step(self, learning_rate: float) -> float:
        set_learning_rate(self._optimizer, learning_rate)
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def all_reduce(self, tensor: Tensor) -> Tensor:
        moved = tensor.to(self.device)
        dist.all_reduce(moved)
        return moved.to(tensor.device)

    def gather(self, names: list[str]) -> list[str]:
        parts: list[list[str]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(parts, names)
        return [name for part in parts for name in part]

    def save(self, folder: Path, progress: dict[str, Any]) -> None:
        """Writes this rank's part of a checkpoint; all ranks call it, each with its own or one common folder."""
        self.engine.save_checkpoint(str(folder), tag=_TAG, exclude_frozen_parameters=True)
        state = {"world_size": self.world_size, "progress": progress}
        (folder / _STATE).write_text(json.dumps(state))

    def load(self, folder: Path) -> tuple[dict[str, Any], bool]:
        """Restores a checkpoint.

        Returns:
            `progress`, and whether the optimizer's moments were restored: DeepSpeed cannot part them anew, so that
            with another number of workers they start again at zero.

        Raises:
            CheckpointError: there is no checkpoint in `folder`.
        """
        try:
            state = json.loads((folder / _STATE).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"checkpoint {folder}: unreadable ({error})") from error
        whole = state["world_size"] == self.world_size
        path, _ = self.engine.load_checkpoint(
            str(folder), tag=_TAG, load_module_strict=False, load_module_only=not whole
        )
        if path is None:
            raise CheckpointError(f"checkpoint {folder}: holds nothing that can be loaded")
        return state["progress"], whole


def run(job: WorkerJob, data: Any) -> dict[str, Any]:
    """`work` with Ray Train's checkpoints; `data` is the reference to `TrainingData`.

    A `TrainingError` comes back as `{"error": sentence}`: it would come again at every restart.
    """
    context, device = ray.train.get_context(), get_device()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()))

    def make_backend(model: nn.Module) -> ZeroBackend:
        return ZeroBackend(model, job.training, job.model.dtype, device)

    def save(step: int, write: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report(
                {"step": step}, checkpoint=Checkpoint.from_directory(folder), checkpoint_dir_name=f"step_{step:07}"
            )

    checkpoint = ray.train.get_checkpoint()
    try:
        with checkpoint.as_directory() if checkpoint else nullcontext() as restored:
            return work(job, ray.get(data), make_backend, Path(restored) if restored else None, save)
    except TrainingError as error:
        return {"error": str(error)}
