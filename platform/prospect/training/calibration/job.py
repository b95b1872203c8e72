"""Calibration as one Ray task, on a GPU where there is one."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from prospect.data.clips import Clip
from prospect.errors import ProspectError
from prospect.training.assignment import WorkerJob
from prospect.training.calibration.calibrate import CalibrationJob, calibrate
from prospect.training.settings import TrainingError


def calibrate_model(job: WorkerJob, validation: Sequence[Clip], report: Callable[[str], None]) -> None:
    """Gives the run's finished model its thresholds, as `training.calibration` says; Ray must be connected.

    Raises:
        TrainingError: a dialogue cannot be streamed, or the task's process died.
    """
    settings = job.training.calibration
    if not settings.enabled:
        report("train  thresholds are not calibrated, as training.calibration.enabled=false says")
        return
    dialogues = {(clip.dialogue.video_id, clip.dialogue.dialogue_id): clip.dialogue for clip in validation}
    task = CalibrationJob(
        job.folder, job.cache, job.store, [*dialogues.values()], job.context, settings, job.streaming, job.evaluation
    )
    for line in _lines(task):
        report(f"train  {line}")


def _lines(task: CalibrationJob) -> Iterator[str]:
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    remote: Any = ray.remote(calibrate).options(num_returns="streaming", num_cpus=1, num_gpus=gpus)
    try:
        for line in remote.remote(task):
            yield ray.get(line)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", error)
        if isinstance(error, ray.exceptions.RayTaskError) and not isinstance(cause, ProspectError | OSError):
            raise
        raise TrainingError(
            f"the model is complete, but its thresholds cannot be calibrated: {str(cause).strip().splitlines()[0]}; "
            "start the same run again when that is mended, or with training.calibration.enabled=false",
            field="training.calibration",
        ) from error
