"""A Ray Train worker process, from its start to rank 0's summary; the only kind that imports DeepSpeed."""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import get_device
from torch import nn

from prospect.errors import ProspectError
from prospect.training.backend import raise_on_all_ranks
from prospect.training.calibrate import calibrate_run
from prospect.training.preflight import check_device, own_device
from prospect.training.settings import OutOfMemoryError, TrainingError
from prospect.training.worker import work
from prospect.training.worker_spec import TrainingData, WorkerJob


def worker_main(job: WorkerJob, data: Any) -> dict[str, Any]:
    """Train as one rank of the group that Ray Train has opened, and calibrate as rank 0.

    Args:
        job: what to do.
        data: the reference to `TrainingData`.

    Returns:
        Rank 0's summary. A mistake that all workers know of comes back as `{"error": sentence}`: it would come again
        at every restart.
    """
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    with hidden("mlflow"):  # DeepSpeed's autotuner would import it, for a second
        from prospect.training.zero import Ranks, ZeroBackend

    device, workers = get_device(), ray.train.get_context().get_local_world_size()
    group = Ranks(device)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    threads = job.training.threads_per_worker or max(1, len(os.sched_getaffinity(0)) // workers)
    torch.set_num_threads(threads)

    def make_backend(model: nn.Module) -> ZeroBackend:
        return ZeroBackend(model, job.training, job.model.dtype, device)

    try:
        clips: TrainingData = ray.get(data)
        raise_on_all_ranks(group, find_mismatch(job, workers))
        summary = work(job, clips, make_backend, group)
        if group.rank == 0:  # the others are done, and wait in no collective that would give up on a long calibration
            free_memory()
            torch.set_num_threads(threads * workers)
            calibrate_run(job, clips, summary["step"])
        return summary
    except ProspectError as error:
        agreed = isinstance(error, TrainingError) and not isinstance(error, OutOfMemoryError)
        if not agreed and group.world_size > 1:
            raise  # the other workers wait for this one, until Ray ends them
        return {"error": str(error)}


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """Let others find that a module is not installed, unless it is imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


def free_memory() -> None:
    """Let go of the engine and the optimizer's state, which DeepSpeed's hooks hold in circles."""
    gc.collect()
    torch.cuda.empty_cache()


def find_mismatch(job: WorkerJob, workers: int) -> ProspectError | None:
    """Why this process's device cannot train, if so."""
    try:
        if job.planned:
            check_device(job.model, job.training, job.planned, own_device(), workers, begun=True)
    except ProspectError as error:
        return error
    return None
