"""Ray Train's side of a training: start the workers, follow their events, explain their failures."""

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from prospect.cluster.common import ReportLine
from prospect.cluster.controller import FailureLog, is_process_death, run_worker
from prospect.cluster.gpus import Allotment
from prospect.cluster.job_metrics import TrainingMetrics
from prospect.cluster.process_group import CheckedTorchConfig
from prospect.cluster.runtime import owns_ray
from prospect.errors import ConfigError, ProspectError
from prospect.messages import first_line
from prospect.training.console import console_for
from prospect.training.events import EventFollower, RunEvent
from prospect.training.settings import TrainingError, TrainingSettings
from prospect.training.worker_spec import TrainingData, WorkerJob

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Error numbers of a full disk, a quota, a file size limit and a read-only disk."""


def fit(
    job: WorkerJob,
    data: TrainingData,
    root: Path,
    allotment: Allotment,
    upload: Callable[[Sequence[RunEvent]], None],
    report: ReportLine,
) -> dict[str, Any]:
    """Train with Ray Train, restarting dead workers, and return rank 0's summary.

    Args:
        job: what every worker trains.
        data: the clips.
        root: the storage root.
        allotment: what the job may ask of the cluster.
        upload: takes the run's events in batches; while it raises, they wait.
        report: takes one line of progress at a time.

    Raises:
        ConfigError: the cluster can never have a GPU for every worker, or a node's GPU is missing.
        TrainingError: the loss is not finite, a disk is full, or workers died more often than
            `training.max_failures`.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # seconds until an end or a death is noticed
    settings, gpus, cpus = job.training, allotment.gpus, int(allotment.cpus)
    threads = min(settings.threads_per_worker or 1, max(1, cpus))
    workers = _worker_count(settings, gpus or max(1, cpus // threads), bool(gpus and allotment.final), report)
    report(f"train  starting {workers} worker{'s' if workers > 1 else ''}")
    trainer = _TorchTrainer(
        cast(Any, run_worker),
        train_loop_config={"job": ray.put(job), "data": ray.put(data)},
        scaling_config=ScalingConfig(
            num_workers=cast(Any, _elastic(workers, settings)),
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": threads, "GPU": int(gpus > 0)},
        ),
        torch_config=CheckedTorchConfig(),
        run_config=RunConfig(
            name=settings.run_name,
            storage_path=str(root / "ray_train"),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            callbacks=cast(Any, [FailureLog(job.folder)]),
        ),
    )

    console = console_for(settings.log_every, report)
    exported = TrainingMetrics(settings.run_name)

    def show(event: RunEvent) -> None:
        console(event)
        exported(event)

    follower = EventFollower(job.folder / "metrics.jsonl", upload, show, report)
    with console, follower, _explain_failures(settings):
        summary: dict[str, Any] = cast(Any, trainer.fit()).return_value
        if "error" in summary:
            raise TrainingError(summary["error"])
    return summary


class _TorchTrainer(TorchTrainer):
    """Ray's trainer, without the placement group cleaner where this process started Ray.

    That actor cleans up after a dead controller, but such a Ray ends with its driver anyway. Without a dashboard the
    cleaner takes ten seconds to find out whether the controller lives, and every training would end that much later.
    """

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in made if not (owns_ray() and isinstance(each, PlacementGroupCleanerCallback))]


def _worker_count(settings: TrainingSettings, room: int, final: bool, report: ReportLine) -> int:
    """`training.num_workers`, or fewer where this process started Ray and the machine has no room for all of them."""
    if settings.num_workers <= room:
        return settings.num_workers
    if owns_ray():
        report(f"train  only {room} of the {settings.num_workers} requested workers fit on this machine; continuing")
        return room
    least = settings.min_workers or settings.num_workers
    if final and least > room:
        raise ConfigError(
            f"`training.num_workers` ({least}) is more than the {room} GPUs that the job may have; lower it"
            f"{'' if settings.min_workers is None else ' and training.min_workers'}",
            field="training.num_workers",
        )
    report(f"train  {settings.num_workers} workers requested, {least} needed to start, room for {room} now")
    return settings.num_workers


def _elastic(workers: int, settings: TrainingSettings) -> int | tuple[int, int]:
    """Ray Train's `num_workers`: one number, or (fewest, most) for elastic training."""
    least = min(settings.min_workers or workers, workers)
    return workers if least == workers else (least, workers)


@contextmanager
def _explain_failures(settings: TrainingSettings) -> Iterator[None]:
    """Re-raise Ray Train's errors as the user's mistakes or one-line reasons.

    Ray's own SIGINT handler stops the workers, but stays installed afterwards: the earlier handler is put back.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    except TrainingFailedError as error:
        raise _explained(error, settings) from error
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


def _explained(error: TrainingFailedError, settings: TrainingSettings) -> BaseException:
    """A user's mistake itself, a sentence for a full disk or a dead worker, or `error` for a bug."""
    failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    if isinstance(error, ControllerError):
        failures = [getattr(error.controller_failure, "cause", error.controller_failure)]
    for cause in failures:
        if isinstance(cause, ProspectError):
            return cause
        if isinstance(cause, OSError) and cause.errno in _DISK:
            return TrainingError(
                f"a worker cannot write: {cause}; make room and start the run again, which continues from its last "
                "checkpoint"
            )
    if deaths := [failure for failure in failures if is_process_death(failure)]:
        return TrainingError(
            f"workers died more than training.max_failures={settings.max_failures} times; the run continues from its "
            f"last checkpoint when started again ({first_line(deaths[0])})"
        )
    return error
