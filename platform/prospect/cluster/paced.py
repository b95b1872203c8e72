"""The latency-aware evaluation as one Ray task: an engine that has its machine for itself, as a served one."""

from collections.abc import Sequence

from prospect.cluster.common import ReportLine
from prospect.cluster.gpus import allot
from prospect.cluster.runtime import engine_threads, reserved_device
from prospect.config.schema import ClusterSettings
from prospect.errors import ProspectError
from prospect.evaluation.decision_cache import StreamedModel
from prospect.evaluation.pace_record import PacedRun
from prospect.evaluation.records import Placed
from prospect.evaluation.settings import PacedSettings


def stream_live(
    model: StreamedModel,
    placed: Sequence[Placed],
    settings: PacedSettings,
    cluster: ClusterSettings,
    report: ReportLine,
) -> PacedRun:
    """Stream dialogues as live sessions on one GPU, or on CPUs without any; nothing is cached.

    Raises:
        DataError: a dialogue cannot be streamed.
        ConfigError: so many sessions do not fit, or see `stream_views`.
    """
    import ray

    gpus = min(allot(cluster, "eval", report).gpus, 1)
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_stream)
    try:
        run: PacedRun = ray.get(task.remote(model, list(placed), settings))
    except ProspectError as error:  # Ray's, with the worker's own as its cause
        raise getattr(error, "cause", error) from None
    report(f"eval   {run.report().describe()}")
    return run


def _stream(model: StreamedModel, placed: Sequence[Placed], settings: PacedSettings) -> PacedRun:
    from prospect.evaluation.paced_streamer import stream_model  # with torch

    return stream_model(model, placed, settings, reserved_device(), engine_threads())
