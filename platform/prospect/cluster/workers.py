"""Ray Train around the workers: how many there are, what their failures mean, and who is told."""

import errno
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from prospect.cluster.common import Report
from prospect.cluster.controller import FailureLog, died, enter_worker
from prospect.cluster.runtime import connect
from prospect.errors import ProspectError
from prospect.messages import first_line
from prospect.training.console import console_for
from prospect.training.events import Event, Follower
from prospect.training.settings import TrainingError, TrainingSettings
from prospect.training.worker_spec import TrainingData, WorkerJob

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""What a full disk, a quota, a size limit and a disk that was mounted read-only say."""


def fit(
    job: WorkerJob, data: TrainingData, root: Path, hand_on: Callable[[Sequence[Event]], None], report: Report
) -> dict[str, Any]:
    """Rank 0's summary of a run that came to its end, through failures of its workers.

    Args:
        job: what each worker is told.
        data: the clips.
        root: the storage root.
        hand_on: takes the run's events in batches; while it raises, they wait.
        report: takes one line of progress at a time.

    Raises:
        TrainingError: the loss is not finite, a disk is full, or workers died more often than
            `training.max_failures`.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # how soon an end is seen, or a death
    connect()
    settings = job.training
    gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
    threads = min(settings.threads_per_worker or 1, max(1, cpus))
    workers = _workers(settings, gpus or max(1, cpus // threads), report)
    report(f"train  starting {workers} worker{'s' if workers > 1 else ''}")
    trainer = _Trainer(
        cast(Any, enter_worker),
        train_loop_config={"job": ray.put(job), "data": ray.put(data)},
        scaling_config=ScalingConfig(
            num_workers=cast(Any, _elastic(workers, settings)),
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": threads, "GPU": int(gpus > 0)},
        ),
        run_config=RunConfig(
            name=settings.run_name,
            storage_path=str(root / "ray_train"),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            callbacks=cast(Any, [FailureLog(job.folder)]),
        ),
    )

    console = console_for(settings.log_every, report)
    with console, Follower(job.folder / "metrics.jsonl", hand_on, console, report):
        summary = _run(trainer, settings)
        if "error" in summary:
            raise TrainingError(summary["error"])
    return summary


class _Trainer(TorchTrainer):
    """Ray's, which in a Ray of our own goes without the actor that outlives a dead controller.

    Nothing outlives a Ray that ends with its driver; and where Ray has no dashboard, that actor's question whether the
    controller lives takes ten seconds, for which the end of every training would wait.
    """

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()  # type: ignore[misc]
        own = "RAY_ADDRESS" not in os.environ
        return [each for each in made if not (own and isinstance(each, PlacementGroupCleanerCallback))]


def _workers(settings: TrainingSettings, room: int, report: Report) -> int:
    """As many as asked for; on one machine of our own no more than it has room for: its GPUs, or CPUs without any."""
    if settings.num_workers <= room:
        return settings.num_workers
    if len(ray.nodes()) == 1 and "RAY_ADDRESS" not in os.environ:
        report(f"train  only {room} of the {settings.num_workers} requested workers fit on this machine; continuing")
        return room
    least = settings.min_workers or settings.num_workers
    report(f"train  {settings.num_workers} workers wanted, {least} needed to begin, room for {room} now")
    return settings.num_workers


def _elastic(workers: int, settings: TrainingSettings) -> int | tuple[int, int]:
    least = min(settings.min_workers or workers, workers)
    return workers if least == workers else (least, workers)


def _run(trainer: TorchTrainer, settings: TrainingSettings) -> dict[str, Any]:
    """Rank 0's summary. Ray's own SIGINT handler stops the workers, and stays installed unless it is removed."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        return cast(Any, trainer.fit()).return_value
    except SystemExit:
        raise KeyboardInterrupt from None
    except TrainingFailedError as error:
        raise _explained(error, settings) from error
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


def _explained(error: TrainingFailedError, settings: TrainingSettings) -> BaseException:
    """A user's mistake as itself, a worker's death in a sentence; a defect keeps its stack trace."""
    failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    for cause in failures:
        if isinstance(cause, ProspectError):
            return cause
        if isinstance(cause, OSError) and cause.errno in _DISK:
            return TrainingError(
                f"a worker cannot write: {cause}; make room and start the run again, which continues from its last "
                "checkpoint"
            )
    if ended := [failure for failure in failures if died(failure)]:
        return TrainingError(
            f"workers died more than training.max_failures={settings.max_failures} times; the run continues from its "
            f"last checkpoint when started again ({first_line(ended[0])})"
        )
    return error
