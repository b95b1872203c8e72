"""Stream dialogues through a model in Ray Data actors: by what it is shown, and at which thresholds it acts."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

from prospect.cluster.common import ReportLine
from prospect.cluster.gpus import allot
from prospect.cluster.runtime import reserved_device
from prospect.config.schema import ClusterSettings
from prospect.errors import ConfigError, ProspectError
from prospect.evaluation.decision_cache import GroupRow, StreamedModel, cached_decisions
from prospect.evaluation.records import Placed, Variant, VideoDecisions, View
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.sweep import Curves, Decides, threshold_curves
from prospect.similarity import SentenceEncoder

MODEL = "trained model"
VIEWS: dict[View, str] = {
    "watched": MODEL,
    "shuffled": "shuffled frames",
    "blank": "blank frames",
    "untracked": "no task state",
    "told": "told the state",
}
"""What the model is shown -> name of the system in the table of scores."""
ALWAYS: tuple[View, ...] = ("watched", "shuffled", "blank")
GROUPS_PER_ACTOR = 12
"""Groups of dialogues that are worth another actor, which must import torch and load the model first."""


class _StreamerActor:
    """A Ray Data actor around `GroupStreamer`, so that the driver need not import torch."""

    def __init__(self, model: StreamedModel) -> None:
        from prospect.evaluation.group_streamer import GroupStreamer

        self._stream: GroupStreamer | None = None
        self._error = ""
        try:
            self._stream = GroupStreamer(model, reserved_device())
        except ProspectError as error:  # as a value: an exception in an actor would arrive as a stack trace
            self._error = str(error)

    def __call__(self, row: GroupRow) -> GroupRow:
        if self._stream is None:
            return {"key": "", "decisions": "", "error": self._error, "engine": ""}
        return self._stream(row)


def stream_views(
    model: StreamedModel,
    placed: Sequence[Placed],
    cluster: ClusterSettings,
    report: ReportLine,
    views: Sequence[View] = ALWAYS,
) -> dict[str, list[VideoDecisions]]:
    """Stream dialogues through the model once for each view; returns decisions by the system's name.

    Raises:
        DataError: a dialogue cannot be streamed.
        ConfigError: the cluster never has `cluster.gpus`, a node's GPU is missing, or an actor cannot load the model.
    """
    found = _stream_variants(model, placed, cluster, report, [Variant(view) for view in views])
    return {VIEWS[variant.view]: decisions for variant, decisions in found.items()}


def _stream_variants(
    model: StreamedModel,
    placed: Sequence[Placed],
    cluster: ClusterSettings,
    report: ReportLine,
    variants: Sequence[Variant],
) -> dict[Variant, list[VideoDecisions]]:
    return cached_decisions(model, placed, variants, partial(_stream_groups, model, cluster, report), report)


def sweep_thresholds(
    model: StreamedModel,
    placed: Sequence[Placed],
    cluster: ClusterSettings,
    report: ReportLine,
    settings: EvaluationSettings,
    encoder: SentenceEncoder,
) -> dict[Decides, Curves]:
    """Scores at every threshold of `settings.sweep` for one decision, at the model's own for the other.

    Raises:
        DataError, ConfigError: as in `stream_views`.
    """
    grid = settings.sweep
    variants_of: dict[Decides, list[Variant]] = {
        "update": [Variant(update=threshold) for threshold in grid],
        "speak": [Variant(speak=threshold) for threshold in grid],
    }
    found: dict[Decides, Curves] = {}
    for name, variants in variants_of.items() if grid else ():
        streamed = _stream_variants(model, placed, cluster, report, variants)
        found[name] = threshold_curves(name, grid, [streamed[variant] for variant in variants], settings, encoder)
    return found


def _stream_groups(
    model: StreamedModel, cluster: ClusterSettings, report: ReportLine, rows: list[GroupRow]
) -> Iterator[GroupRow]:
    """Stream groups of dialogues in Ray Data actors, one for each GPU, or on CPUs without any."""
    import ray.data

    allotment = allot(cluster, "eval", report)
    gpus, cpus = allotment.gpus, int(allotment.cpus)
    actors = min(len(rows), gpus) or max(1, min(-(-len(rows) // GROUPS_PER_ACTOR), cpus))
    streamed = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        cast(Any, _StreamerActor),  # Ray takes a class for a stateful function; its annotation does not say so
        fn_constructor_args=(model,),
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    said = set[str]()
    for row in streamed.iter_rows():
        if not row["key"]:  # the actor, not one of its dialogues
            raise ConfigError(row["error"])
        if row["engine"] not in said:
            report(f"eval   streaming with {row['engine']}")
            said.add(row["engine"])
        yield row
