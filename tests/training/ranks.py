"""Real ranks for tests: processes that share a gloo group and run training without Ray."""

import json
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prospect.data.batches import Batch
from prospect.model.losses import loss_sums
from prospect.model.settings import LossSettings
from prospect.training.backend import PlainBackend, TrainingBackend
from prospect.training.settings import TrainingError
from prospect.training.worker import TrainingRun
from prospect.training.worker_spec import TrainingData, WorkerJob


class Ranks:
    """`world_size` processes; each call of `run` runs one function in all of them."""

    def __init__(self, world_size: int, meeting: Path) -> None:
        self._executors = [
            ProcessPoolExecutor(1, get_context("spawn"), initializer=_join, initargs=(rank, world_size, meeting))
            for rank in range(world_size)
        ]

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """The results by rank."""
        futures = [executor.submit(function, *arguments) for executor in self._executors]
        done, _ = wait(futures, timeout=200, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        return [future.result(timeout=0) for future in futures]


@contextmanager
def ranks(world_size: int, folder: Path) -> Iterator[Ranks]:
    group = Ranks(world_size, folder / f"meeting_{world_size}")
    try:
        yield group
    finally:
        for executor in group._executors:
            for process in executor._processes.values():
                process.kill()  # where one rank failed, the others wait for it
            executor.shutdown(cancel_futures=True)


def _join(rank: int, world_size: int, meeting: Path) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)


class InterruptionError(Exception):
    """What stands for a death between two steps."""


def interrupting(backend: Any, after: int | None, job: WorkerJob) -> Any:
    """`backend`, whose process dies in place of update number `after`; the clips of each step are noted on the way."""
    step, sums = backend.step, backend.loss_sums

    def noted(batch: Batch, settings: LossSettings) -> Tensor:
        if backend.model.training:
            with (job.folder / f"seen_{backend.rank}.jsonl").open("a") as file:
                file.write(json.dumps([backend.updates, batch.clip_ids]) + "\n")
        return sums(batch, settings)

    backend.loss_sums = noted

    def counted(learning_rate: float) -> float:
        if backend.updates == after:
            raise InterruptionError
        return step(learning_rate)

    if after is not None:
        backend.step = counted
    return backend


def make(kind: str, job: WorkerJob, model: nn.Module, after: int | None) -> TrainingBackend:
    if kind == "plain":
        return interrupting(PlainBackend(model, job.training), after, job)
    from prospect.training.zero import ZeroBackend

    return interrupting(ZeroBackend(model, job.training, job.model.dtype, torch.device("cpu")), after, job)


def train(kind: str, job: WorkerJob, data: TrainingData, die_after: int | None = None) -> dict[str, Any] | None:
    """A run on a backend of this kind, `zero` or `plain`; None where it died."""
    try:
        return TrainingRun(job, data, lambda model: make(kind, job, model, die_after)).run()
    except InterruptionError:
        return None


def sentence_on(kind: str, jobs: Sequence[WorkerJob], data: TrainingData) -> str:
    """What ends training on this rank, whose job is that of its number."""
    from prospect.training.zero import TorchProcessGroup

    group = TorchProcessGroup(torch.device("cpu"))
    job = jobs[group.rank]
    try:
        TrainingRun(job, data, lambda model: make(kind, job, model, None), group).run()
    except TrainingError as error:
        return str(error)
    return "nothing"


def train_with_files_up_to(num_bytes: int, job: WorkerJob, data: TrainingData) -> str:
    """What a run on the plain backend fails with where no file may get larger: its error's class and sentence."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        train("plain", job, data)
    except Exception as error:  # whatever it is, the test reads it
        return f"{type(error).__name__}: {error}"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return "nothing failed"


def train_and_compare(job: WorkerJob, data: TrainingData) -> tuple[float, float]:
    """Trains with ZeRO; then the loss on one batch by all ranks together, and by each alone on the whole model."""
    made: list[TrainingBackend] = []

    def keep(model: nn.Module) -> TrainingBackend:
        made.append(make("zero", job, model, None))
        return made[0]

    running = TrainingRun(job, data, keep)
    running.run()
    [backend] = made
    backend.model.eval()
    batch, losses = running.collate(data.validation[:1], 0), job.training.losses
    with torch.no_grad():
        together = float(backend.loss_sums(batch, losses).sum())
        with backend.whole_model() as model:
            alone = float(loss_sums(model, batch, losses).sum()) if backend.rank == 0 else together
        again = float(backend.loss_sums(batch, losses).sum())
    assert again == together, "partitioned again"
    return together, alone
