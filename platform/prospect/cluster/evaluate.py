"""Evaluate a model with Ray Data: stream held-out videos, score them beside baselines, promote the better model."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prospect.cluster.common import ReportLine, report_earlier_decoder
from prospect.cluster.gpus import allot
from prospect.cluster.runtime import reserved_device
from prospect.config.schema import ClusterSettings, Config
from prospect.data.embeddings import EmbeddingStore
from prospect.data.prepare import Records, read_records
from prospect.data.sources import split_name
from prospect.errors import ConfigError, DataError, ProspectError
from prospect.evaluation.baselines import Periodic, TimePrior, oracle, right_time_wrong_step, silence
from prospect.evaluation.decision_cache import GroupRow, StreamedModel, cached_decisions, hash_model
from prospect.evaluation.intervals import Interval
from prospect.evaluation.lineage import Lineage, counted, is_told, records_fingerprint, seen_videos, video_names
from prospect.evaluation.metrics import Scores, evaluate, paired_interval
from prospect.evaluation.predictions import Predictions, predictions_file, save_predictions
from prospect.evaluation.records import Placed, VideoDecisions, View
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.thresholds import shown
from prospect.files import write_json
from prospect.model.saved import SavedModel, read_saved
from prospect.model.settings import HEADS
from prospect.reports.evaluation.page import write_page
from prospect.reports.model_card import add_evaluation, without_head
from prospect.similarity import SentenceSimilarity
from prospect.streaming.settings import StreamingSettings
from prospect.terminal import console
from prospect.tracking.settings import NOTE
from prospect.vision.fingerprint import encoder_fingerprint

if TYPE_CHECKING:
    from prospect.tracking.tracking import Tracking

MODEL = "trained model"
VIEWS: dict[View, str] = {"watched": MODEL, "shuffled": "shuffled frames", "blank": "blank frames"}
"""What the model is shown -> name of the system in the table of scores."""
RIVALS = ("silence", "time prior", "shuffled frames", "blank frames")
"""Systems that a model that watches must beat in joint goal accuracy; silence stays in the initial state."""
GROUPS_PER_ACTOR = 12
"""Groups of dialogues that are worth another actor, which must import torch and load the model first."""


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of an evaluation by system; `MODEL` is the trained one."""

    lineage: Lineage
    scores: dict[str, Scores]
    advantage: dict[str, Interval | None]
    """Difference in joint goal accuracy between the model and each rival, on the same videos."""
    file: Path
    """This result as JSON."""
    fast_share: float
    """Share of watched frames that were decided without `lm_head`."""
    manifest: Mapping[str, Any]
    """Of the model: its run, its encoder."""
    page: Path | None = None
    """The HTML page on it, if there is one."""
    champion: bool = False
    """Whether the model was promoted."""


def evaluate_and_show(config: Config) -> None:
    """Run `evaluate_model` and print its table; with `rescore` or `compare` the same of results that there are."""
    if config.compare is not None:
        from prospect.cluster.compare import compare_and_show

        compare_and_show(config)
        return
    if config.rescore is not None:
        from prospect.cluster.rescore import rescore

        result = rescore(config)
    else:
        result = evaluate_model(config)
    from prospect.reports.tables import render_table  # with scipy

    lineage = result.lineage
    title = f"{lineage.model} on {lineage.split}, {lineage.count}"
    console(100).print(
        render_table(result.scores, "\n".join([title, *(f"ATTENTION: {mark}" for mark in lineage.marks())]))
    )


def evaluate_model(config: Config, report: ReportLine = print) -> EvaluationResult:
    """Stream the split's dialogues through the model, and score it beside the baselines.

    A registered model is promoted to `champion` as `promote_if_better` says. One evaluation is one result: a file and
    an MLflow run of its own, which the same evaluation replaces and no other.

    Args:
        config: sections storage, data, vision, model, context, streaming, evaluation and tracking.
        report: takes one line of progress at a time.

    Raises:
        DataError: the split is empty, or the model was trained on some of its videos.
        CheckpointError: the model is missing.
        UntrainedHeadError: its heads were never trained.
        FingerprintError: the embeddings were made by another encoder than the model's, or than `config.vision`.
        ConfigError: the sentence encoder is missing, or see `stream_views`.
    """
    settings, root = config.evaluation, Path(config.storage.root)
    store = EmbeddingStore(str(root / "embeddings"))
    records = read_records(config.data, root / "labels" / "dialogues.jsonl", store)
    placed = records.scored(settings.split)
    if not placed:
        held = Counter(dialogue.split for dialogue, _ in records.placed)
        there = ", ".join(f"{split} ({count})" for split, count in sorted(held.items()))
        raise DataError(
            f"`evaluation.split` ({settings.split}) has no dialogues; there are {there}: hold some out, for example "
            "with data.holdout=1",
            field="evaluation.split",
        )
    encoder = SentenceSimilarity(settings.similarity)
    from prospect.cluster.promotion import promote_if_better  # with MLflow
    from prospect.tracking.tracking import Tracking

    tracking = Tracking(config.tracking, root)
    model = settings.model or f"models:/{config.model.name}@candidate"
    saved = read_saved(tracking.resolve(model))
    saved.require_trained(HEADS[0])
    if config.encoder_is_given:
        store.require(encoder_fingerprint(config.vision), config.vision.equivalent_to)
    store.require(saved.fingerprint, config.vision.equivalent_to)
    report_earlier_decoder(store, "eval", report)
    lineage = _lineage(config, model, saved, records, placed, store)
    _refuse_seen(lineage, settings)
    report(f"eval   {_thresholds(saved, config.streaming, {dialogue.dataset for dialogue, _ in placed})}")
    report(f"eval   {model}: streaming {counted(len(placed), 'dialogue')} of {lineage.count}, {len(VIEWS)} views each")
    for mark in lineage.marks():
        report(f"eval   ATTENTION: {mark}")
    decided = stream_views(_streamed(config, saved, store), placed, config.cluster, report)
    predictions = Predictions(lineage, saved.manifest, decided | _baselines(records, placed), records.videos)
    result = score_predictions(predictions, settings, encoder, root)
    report(f"eval   {result.fast_share:.1%} of the watched frames took the fast path, without lm_head")
    record_result(tracking, result)
    report(f"eval   written to {result.file}" + (f", page {result.page}" if result.page else ""))
    card = complete_card(result, root)
    if not model.startswith("models:/"):
        return result
    if card:
        tracking.describe_version(*tracking.version_of(model), without_head(card))

    def score(champion: SavedModel) -> Scores | None:
        if champion.fingerprint not in {store.fingerprint, *config.vision.equivalent_to}:
            return None
        report("eval   the champion on the same videos")
        watched = stream_views(_streamed(config, champion, store), placed, config.cluster, report, ["watched"])
        return evaluate(watched[MODEL], settings, encoder)

    promoted = promote_if_better(tracking, lineage, result.scores[MODEL], placed, settings, score, report)
    return replace(result, champion=promoted)


def score_predictions(
    predictions: Predictions, settings: EvaluationSettings, encoder: SentenceSimilarity, root: Path
) -> EvaluationResult:
    """Score what the systems decided, and write result, predictions and page below `root`.

    They lie in `evaluations/RUN/` as `SPLIT-KEY.json`, `SPLIT-KEY.predictions.jsonl.gz` and `SPLIT-KEY.html`.
    """
    lineage = predictions.lineage
    scores = {name: evaluate(videos, settings, encoder) for name, videos in predictions.systems.items()}
    rivals = {name: scores[name] for name in RIVALS if name in scores}
    advantage = {name: paired_interval(scores[MODEL], rival, settings=settings) for name, rival in rivals.items()}
    run = str(predictions.manifest["run_name"])
    file = root / "evaluations" / run / f"{lineage.split}-{lineage.key}.json"
    fast_share = _fast_share(predictions.systems[MODEL])
    result = EvaluationResult(lineage, scores, advantage, file, fast_share, predictions.manifest)
    save_predictions(predictions_file(file), predictions)
    if settings.report.enabled:
        page = write_page(file.with_suffix(".html"), predictions, scores, settings, encoder, advantage)
        result = replace(result, page=page)
    _write(result)
    return result


def _streamed(config: Config, saved: SavedModel, store: EmbeddingStore) -> StreamedModel:
    """A saved model with the settings of this evaluation, where it was not trained with others of its own."""
    context = config.context.over(saved.manifest.get("context", {}))
    return StreamedModel(saved.folder, Path(config.storage.root) / "cache", str(store.root), context, config.streaming)


def _lineage(
    config: Config,
    model: str,
    saved: SavedModel,
    records: Records,
    placed: Sequence[Placed],
    store: EmbeddingStore,
) -> Lineage:
    dialogues = [dialogue for dialogue, _ in placed]
    split = split_name(config.evaluation.split)
    context = config.context.over(saved.manifest.get("context", {}))
    datasets = sorted({dialogue.dataset for dialogue in dialogues})
    return Lineage(
        model=model,
        weights=hash_model(saved.folder),
        split=split,
        records=records_fingerprint(dialogues),
        embeddings=store.fingerprint,
        videos=len(video_names(dialogues)),
        dialogues=len(dialogues),
        missing=tuple(video_names(dialogue for dialogue in records.lost if dialogue.split == split)),
        seen=seen_videos(saved.manifest, dialogues),
        told=is_told(context),
        rules={
            "evaluation": scoring_rules(config.evaluation),
            "context": context.model_dump(mode="json"),
            "streaming": config.streaming.decisive(),
            "thresholds": {name: config.streaming.thresholds(saved.thresholds, name) for name in datasets},
        },
    )


def scoring_rules(settings: EvaluationSettings) -> dict[str, Any]:
    """The settings that a score depends on, beside its data."""
    return settings.model_dump(mode="json", exclude={"model", "split", "allow_seen", "report"})


def _refuse_seen(lineage: Lineage, settings: EvaluationSettings) -> None:
    if lineage.seen and not settings.allow_seen:
        raise DataError(
            f"`evaluation.split` ({settings.split}): the model was trained or validated on {len(lineage.seen)} of its "
            f"{lineage.videos} videos ({', '.join(lineage.seen[:3])}): hold them out and train again, or give "
            "evaluation.allow_seen=true, which marks the result and promotes nothing",
            field="evaluation.split",
        )


def _fast_share(videos: Sequence[VideoDecisions]) -> float:
    fast = [decision.fast for video in videos for decision in video.decisions]
    return sum(fast) / len(fast) if fast else 1.0


def _thresholds(saved: SavedModel, streaming: StreamingSettings, datasets: set[str]) -> str:
    """One line on the thresholds in use, and where they come from."""
    calibrated = saved.thresholds
    in_force = {dataset: streaming.thresholds(calibrated, dataset) for dataset in datasets}
    if calibrated and streaming.calibrated:
        return f"thresholds calibrated in training: {shown(in_force)}"
    why = "by streaming.calibrated=false" if calibrated else "the model brings no calibrated ones"
    return f"thresholds as configured, {why}: {shown(in_force)}"


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
    views: Sequence[View] = tuple(VIEWS),
) -> dict[str, list[VideoDecisions]]:
    """Stream dialogues through the model once for each view; returns decisions by the system's name.

    Raises:
        DataError: a dialogue cannot be streamed.
        ConfigError: the cluster never has `cluster.gpus`, a node's GPU is missing, or an actor cannot load the model.
    """
    found = cached_decisions(model, placed, views, partial(_stream_groups, model, cluster, report), report)
    return {VIEWS[view]: decisions for view, decisions in found.items()}


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
        "lineage": result.lineage.to_dict(),
        "model": result.lineage.model,
        "fast_share": result.fast_share,
        "manifest": dict(result.manifest),
        "scores": {name: scores.to_dict() for name, scores in result.scores.items()},
        "advantage": {name: interval and asdict(interval) for name, interval in result.advantage.items()},
    }
    write_json(result.file, values)


def record_result(tracking: "Tracking", result: EvaluationResult, rescored: bool = False) -> None:
    """Log the evaluation to an MLflow run of its own, and its scores on the test split to the model's training run.

    The training run keeps its scores where an evaluation is `rescored` by other rules.
    """
    lineage = result.lineage
    trained_in = result.manifest.get("mlflow_run")
    training = tracking.find_run(trained_in) if trained_in else None
    logged = {**result.scores[MODEL].logged(), "fast_share": result.fast_share}
    metrics = {f"eval/{name}": value for name, value in logged.items()}
    name = f"{result.manifest['run_name']} on {lineage.split}"
    run = tracking.open_evaluation(lineage.key, name, training)
    run.log_parameters({"split": lineage.split, **lineage.rules})
    run.log_metrics(metrics)
    run.set_tags({NOTE: _described(result), "model": lineage.model, "marks": "; ".join(lineage.marks())})
    for file in filter(None, (result.file, result.page)):
        run.log_file(file, "evaluation")
    run.finish()
    if training is not None and lineage.split == "test" and not lineage.obstacle and not rescored:
        training.log_metrics(metrics)
        training.log_file(result.file, "evaluation")


def complete_card(result: EvaluationResult, root: Path) -> str:
    """Add the scores to the card in the run's model folder; returns the card, or '' where there is no such folder."""
    folder = root / "runs" / str(result.manifest["run_name"]) / "model"
    if not (folder / "config.json").is_file() or hash_model(folder) != result.lineage.weights:
        return ""
    try:
        return add_evaluation(folder, result.lineage, result.scores[MODEL].overall)
    except OSError:  # somebody else's run, which this user may only read
        return ""


def _described(result: EvaluationResult) -> str:
    """One sentence with data, rules and scores."""
    lineage, scores = result.lineage, result.scores[MODEL].logged()
    shown = ", ".join(f"{name} {scores[name]:.3f}" for name in ("joint_goal_accuracy", "turn_f1") if name in scores)
    marks = "".join(f" ATTENTION: {mark}." for mark in lineage.marks())
    dialogues = counted(lineage.dialogues, "dialogue")
    return f"{lineage.model} on {lineage.split}: {dialogues} of {lineage.count}; {shown}.{marks}"
