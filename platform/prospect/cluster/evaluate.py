"""Scores a model: held-out videos streamed with Ray Data, beside baselines that do not watch; the better one serves."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console

from prospect.cluster.common import Report, report_earlier_decoder
from prospect.cluster.runtime import connect
from prospect.config.schema import Config
from prospect.data.embeddings import EmbeddingStore
from prospect.data.prepare import Records, read_records
from prospect.dialogue.prompt import ContextSettings
from prospect.errors import DataError, ProspectError
from prospect.evaluation.baselines import Periodic, TimePrior, oracle, right_time_wrong_step, silence
from prospect.evaluation.decision_cache import Row, cached_decisions
from prospect.evaluation.intervals import Interval
from prospect.evaluation.metrics import Scores, evaluate, paired_interval
from prospect.evaluation.records import Placed, VideoDecisions, View
from prospect.evaluation.thresholds import shown
from prospect.files import write_json
from prospect.model.saved import SavedModel, read_saved
from prospect.model.settings import HEADS
from prospect.similarity import SentenceSimilarity
from prospect.streaming.settings import StreamingSettings

if TYPE_CHECKING:
    from prospect.tracking.tracking import Tracking

MODEL = "trained model"
VIEWS: dict[View, str] = {"watched": MODEL, "shuffled": "shuffled frames", "blank": "blank frames"}
"""What the model is shown, and the name of the system that it then is."""
RIVALS = ("silence", "time prior", "shuffled frames", "blank frames")
"""What a model that watches must beat in joint goal accuracy; silence stays in the initial state."""
GROUPS_PER_ACTOR = 12
"""Groups for which it pays to start one more engine, whose process imports torch and loads the model first."""


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found, by system; `MODEL` is the trained one."""

    scores: dict[str, Scores]
    advantage: dict[str, Interval | None]
    """Joint goal accuracy of the model less that of each rival on the same videos."""
    model: str
    file: Path
    """All of it as JSON."""
    fast_share: float
    """Of the frames that the model watched, those decided without `lm_head`."""
    manifest: dict[str, Any]
    """What travels with the model: its run, its encoder."""
    champion: bool = False
    """Whether it serves from now on."""


def evaluate_and_show(config: Config) -> None:
    """`evaluate_model`, with its table at the end."""
    from prospect.reports.tables import render_table  # both with scipy

    result = evaluate_model(config)
    Console(width=100).print(render_table(result.scores, f"{result.model} on {config.evaluation.split}"))


def evaluate_model(config: Config, report: Report = print) -> EvaluationResult:
    """Streams the split's dialogues through the model and scores them beside the baselines.

    A registered model is promoted to `champion` where it is the first or better than the one that serves.

    Args:
        config: sections storage, data, vision, model, context, streaming, evaluation and tracking.
        report: takes one line of progress at a time.

    Raises:
        DataError: nothing to score.
        CheckpointError: no such model.
        UntrainedHeadError: its heads were never trained.
        FingerprintError: the embeddings were made by another encoder than the model's.
    """
    settings, root = config.evaluation, Path(config.storage.root)
    store = EmbeddingStore(str(root / "embeddings"))
    records = read_records(config.data, root / "labels" / "dialogues.jsonl", store)
    placed = records.scored(settings.split)
    if not placed:
        raise DataError(
            f"evaluation.split={settings.split!r} holds no dialogue; hold some out, for instance with data.holdout=1",
            field="evaluation.split",
        )
    from prospect.tracking.tracking import Tracking  # with MLflow

    tracking = Tracking(config.tracking, root)
    model = settings.model or f"models:/{config.model.name}@candidate"
    saved = read_saved(tracking.resolve(model))
    saved.require_trained(HEADS[0])
    store.require(saved.fingerprint)
    report_earlier_decoder(store, "eval", report)
    report(f"eval   {_thresholds(saved, config.streaming, {dialogue.dataset for dialogue, _ in placed})}")
    report(f"eval   {model}: streaming {len(placed)} dialogues, {len(VIEWS)} views each")
    context = config.context.over(saved.manifest["context"])
    decided = streamed(saved.folder, root / "cache", placed, store, context, config.streaming, report)
    systems = decided | _baselines(records, placed)
    encoder = SentenceSimilarity(settings.similarity)
    scores = {name: evaluate(videos, settings, encoder) for name, videos in systems.items()}
    rivals = {name: scores[name] for name in RIVALS}
    advantage = {name: paired_interval(scores[MODEL], rival, settings=settings) for name, rival in rivals.items()}
    fast_share = _fast_share(decided[MODEL])
    report(f"eval   {fast_share:.1%} of the watched frames took the fast path, without lm_head")
    file = root / "evaluations" / f"{saved.manifest['run_name']}.json"
    result = EvaluationResult(scores, advantage, model, file, fast_share, saved.manifest)
    _write(result)
    champion = _record(tracking, result, report)
    report(f"eval   written to {result.file}")
    return replace(result, champion=champion)


def _fast_share(videos: Sequence[VideoDecisions]) -> float:
    fast = [decision.fast for video in videos for decision in video.decisions]
    return sum(fast) / len(fast) if fast else 1.0


def _thresholds(saved: SavedModel, streaming: StreamingSettings, datasets: set[str]) -> str:
    """Which thresholds hold, in a line."""
    calibrated = saved.thresholds
    in_force = {dataset: streaming.thresholds(calibrated, dataset) for dataset in datasets}
    if calibrated and streaming.calibrated:
        return f"thresholds calibrated in training: {shown(in_force)}"
    why = "by streaming.calibrated=false" if calibrated else "the model brings no calibrated ones"
    return f"thresholds as configured, {why}: {shown(in_force)}"


class _Streamer:
    """A `GroupStreamer` in a Ray Data actor, which alone imports torch."""

    def __init__(self, *arguments: Any) -> None:
        from prospect.evaluation.group_streamer import GroupStreamer

        self._stream: GroupStreamer | None = None
        self._error = ""
        try:
            self._stream = GroupStreamer(*arguments)
        except ProspectError as error:  # as a value: what an actor raises arrives as a stack trace
            self._error = str(error)

    def __call__(self, row: Row) -> Row:
        if self._stream is None:
            return {"key": row["key"], "decisions": "", "error": self._error}
        return self._stream(row)


def streamed(
    folder: Path,
    cache: Path,
    placed: Sequence[Placed],
    store: EmbeddingStore,
    context: ContextSettings,
    streaming: StreamingSettings,
    report: Report,
    views: Sequence[View] = tuple(VIEWS),
) -> dict[str, list[VideoDecisions]]:
    """Decisions by the system's name, one for each view that the model in `folder` is shown.

    Raises:
        DataError: a dialogue cannot be streamed.
    """

    def stream(rows: list[Row]) -> Iterator[Row]:
        return _stream_rows(rows, folder, cache, store, context, streaming)

    found = cached_decisions(stream, folder, cache, placed, store, context, streaming, report, views)
    return {VIEWS[view]: decisions for view, decisions in found.items()}


def _stream_rows(
    rows: list[Row],
    folder: Path,
    cache: Path,
    store: EmbeddingStore,
    context: ContextSettings,
    streaming: StreamingSettings,
) -> Iterator[Row]:
    import ray.data

    connect()
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    actors = min(len(rows), gpus) or max(1, min(-(-len(rows) // GROUPS_PER_ACTOR), int(resources.get("CPU", 1))))
    streamed = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        cast(Any, _Streamer),  # Ray takes a class for a stateful function; its annotation does not say so
        fn_constructor_args=(folder, cache, str(store.root), context, streaming),
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    yield from streamed.iter_rows()


def _baselines(records: Records, placed: Sequence[Placed]) -> dict[str, list[VideoDecisions]]:
    training = [timeline for _, timeline in records.scored("train")]
    systems: dict[str, Callable[..., VideoDecisions]] = {
        "silence": silence,
        "periodic": Periodic.fit(training),
        "time prior": TimePrior.fit(training),
        "right time, wrong step": right_time_wrong_step,
        "oracle": oracle,
    }
    return {name: [system(dialogue, timeline) for dialogue, timeline in placed] for name, system in systems.items()}


def _write(result: EvaluationResult) -> None:
    values = {
        "model": result.model,
        "fast_share": result.fast_share,
        "manifest": result.manifest,
        "scores": {name: scores.to_dict() for name, scores in result.scores.items()},
        "advantage": {name: interval and asdict(interval) for name, interval in result.advantage.items()},
    }
    write_json(result.file, values)


def _record(tracking: "Tracking", result: EvaluationResult, report: Report) -> bool:
    """Metrics and the file go to the training run; a registered model may become the champion."""
    scores = result.scores[MODEL].overall
    run = tracking.find_run(result.manifest.get("mlflow_run", ""))
    if run is not None:
        logged = {**result.scores[MODEL].logged(), "fast_share": result.fast_share}
        run.log_metrics({f"eval/{name}": value for name, value in logged.items()})
        run.log_file(result.file, "evaluation")
    if not result.model.startswith("models:/"):
        return False
    name, version = tracking.version_of(result.model)
    metric = "joint_goal_accuracy" if scores["joint_goal_accuracy"] is not None else "turn_f1"
    champion = tracking.promote(name, version, f"eval.{metric}", float(scores[metric] or 0.0))
    verdict = "is the champion now" if champion else "is not better than the champion"
    report(f"eval   models:/{name}/{version} {verdict} ({metric} {scores[metric] or 0.0:.3f})")
    return champion
