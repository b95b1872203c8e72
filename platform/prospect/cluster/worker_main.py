"""A Ray Train worker process: training as one rank, then calibration on rank 0."""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray.train
import torch
from ray.train.torch import get_device
from torch import nn

from prospect.devices import explain_device_failure, has_gpu
from prospect.errors import DeviceError, ProspectError
from prospect.model.geometry import base_geometry
from prospect.model.interface import KVGeometry
from prospect.streaming.attention.select import check_attention
from prospect.training.backend import raise_on_all_ranks
from prospect.training.calibrate import calibrate_run
from prospect.training.preflight import check_device, describe_device
from prospect.training.settings import OutOfMemoryError, TrainingError
from prospect.training.worker import TrainingRun
from prospect.training.worker_spec import TrainingData, WorkerJob


def worker_main(job: WorkerJob, data: TrainingData) -> dict[str, Any]:
    """Train as one rank of the group that Ray Train has opened, and calibrate as rank 0.

    Args:
        job: what to train.
        data: the clips.

    Returns:
        Rank 0's summary. An error that all workers raise comes back as `{"error": sentence}`, because a restart would
        only raise it again.
    """
    if not has_gpu():
        os.environ["DS_ACCELERATOR"] = "cpu"
    with hide_module("mlflow"):  # DeepSpeed's autotuner would import it, for a second
        from prospect.training.zero import TorchProcessGroup, ZeroBackend

    device, workers = get_device(), ray.train.get_context().get_local_world_size()
    group = TorchProcessGroup(device)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    threads = job.training.threads_per_worker or max(1, len(os.sched_getaffinity(0)) // workers)
    torch.set_num_threads(threads)

    def make_backend(model: nn.Module) -> ZeroBackend:
        return ZeroBackend(model, job.training, job.model.dtype, device)

    try:
        raise_on_all_ranks(group, device_error(job, device, workers))
        with explain_device_failure():
            summary = TrainingRun(job, data, make_backend, group).run()
        if group.rank == 0:  # the other ranks have ended: none waits in a collective that would time out
            free_memory()
            torch.set_num_threads(threads * workers)
            calibrate_run(job, data, summary["step"])
        return summary
    except DeviceError:
        raise  # a new process may get a sound GPU
    except ProspectError as error:
        on_all_ranks = isinstance(error, TrainingError) and not isinstance(error, OutOfMemoryError)
        if not on_all_ranks and group.world_size > 1:
            raise  # the other workers wait for this one until Ray ends them
        return {"error": str(error)}


@contextmanager
def hide_module(module: str) -> Iterator[None]:
    """Make imports of `module` fail inside the block, unless it is imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


def free_memory() -> None:
    """Free the engine and the optimizer's state, which DeepSpeed's hooks hold in reference cycles."""
    gc.collect()
    torch.cuda.empty_cache()


def device_error(job: WorkerJob, device: torch.device, workers: int) -> ProspectError | None:
    """The reason why this worker's device cannot train, or not run the engine that validates, if there is one."""
    try:
        if job.planned:
            check_device(job.model, job.training, job.planned, describe_device(), workers, begun=True)
        if job.training.calibration.enabled or job.training.stream_every:
            geometry = KVGeometry.of(base_geometry(job.model))
            check_attention(job.streaming, geometry, getattr(torch, job.model.dtype), device)
    except ProspectError as error:
        return error
    return None
