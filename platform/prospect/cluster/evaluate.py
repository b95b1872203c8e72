"""Evaluate a model with Ray Data: stream held-out videos, score them beside baselines, promote the better model."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prospect.cluster.common import ReportLine, report_earlier_decoder
from prospect.cluster.gpus import allot
from prospect.cluster.paced import stream_live
from prospect.cluster.runtime import reserved_device
from prospect.config.schema import ClusterSettings, Config
from prospect.data.embeddings import EmbeddingStore
from prospect.data.prepare import Records, read_records
from prospect.data.sources import split_name
from prospect.errors import ConfigError, DataError, ProspectError
from prospect.evaluation.baselines import Periodic, TimePrior, oracle, right_time_wrong_step, silence
from prospect.evaluation.decision_cache import GroupRow, StreamedModel, cached_decisions, hash_model
from prospect.evaluation.intervals import Interval
from prospect.evaluation.judge import judge_systems, require_judge
from prospect.evaluation.judge_report import JudgeReport
from prospect.evaluation.lineage import Lineage, counted, is_told, records_fingerprint, seen_videos, video_names
from prospect.evaluation.metrics import Scores, evaluate, paired_intervals
from prospect.evaluation.pace_record import PacedRun
from prospect.evaluation.records import Placed, Variant, VideoDecisions, View
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.sweep import Curves, Decides, threshold_curves
from prospect.evaluation.text_metrics import score_names, text_scores
from prospect.evaluation.thresholds import shown
from prospect.files import write_json
from prospect.model.saved import SavedModel, read_saved
from prospect.model.settings import HEADS
from prospect.similarity import Identity, SentenceEncoder, SentenceSimilarity
from prospect.streaming.settings import StreamingSettings
from prospect.terminal import console
from prospect.tracking.settings import NOTE
from prospect.vision.fingerprint import encoder_fingerprint

if TYPE_CHECKING:
    from prospect.tracking.tracking import Tracking

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
    manifest: dict[str, Any]
    """Of the model: its run, its encoder."""
    sweep: dict[Decides, Curves] = field(default_factory=dict)
    """Scores over thresholds, as `evaluation.sweep` asks for them."""
    texts: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Scores of the words of correct pairs, by system and full name."""
    judge: JudgeReport | None = None
    """What `evaluation.judge` says of the model, and of the other systems that it names."""
    paced: PacedRun | None = None
    """The latency-aware run behind the model's scores."""
    champion: bool = False
    """Whether the model was promoted."""


def evaluate_and_show(config: Config) -> None:
    """Run `evaluate_model` and print its table."""
    from prospect.reports.tables import render_table  # with scipy

    result = evaluate_model(config)
    lineage = result.lineage
    title = f"{lineage.model} on {lineage.split}, {lineage.count}"
    out = console(100)
    out.print(render_table(result.scores, "\n".join([title, *(f"ATTENTION: {mark}" for mark in lineage.marks())])))
    if result.judge is not None:
        out.print(result.judge)


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
        ConfigError: the sentence encoder is missing, or see `stream_views` and `require_judge`.
        EndpointError: the judge does not answer.
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
    encoder = SentenceSimilarity(settings.similarity, cache=root / "cache" / "sentences")
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
    lineage = _lineage(config, model, saved, records, placed, store, encoder.identity)
    _refuse_seen(lineage, settings)
    views: tuple[View, ...] = ("watched",) if settings.paced else (*ALWAYS, *settings.also)
    report(f"eval   {_thresholds(saved, config.streaming, {dialogue.dataset for dialogue, _ in placed})}")
    shown = f"{counted(len(placed), 'dialogue')} of {lineage.count}, {counted(len(views), 'view')} each"
    report(f"eval   {model}: streaming {shown}")
    for mark in lineage.marks():
        report(f"eval   ATTENTION: {mark}")
    baselines = _baselines(records, placed)
    if settings.judge is not None:
        require_judge(settings.judge, [*(VIEWS[view] for view in views), *baselines], report)
    streamed, paced = _streamed(config, saved, store), None
    if settings.paced is None:
        decided = stream_views(streamed, placed, config.cluster, report, views)
        fast_share = _fast_share(decided[MODEL])
    else:
        paced = stream_live(streamed, placed, settings.paced, config.cluster, report)
        lineage = replace(lineage, paced={**settings.paced.model_dump(mode="json"), **paced.where()})
        decided, fast_share = {MODEL: paced.known()}, paced.fast_share
    systems = decided | baselines
    if sentences := _sentences(systems.values()):
        encoder.embed(sentences)  # in batches, before dialogues ask for a few each
    sweep = _sweep(partial(_stream_variants, streamed, placed, config.cluster, report), settings, encoder)
    scores = {name: evaluate(videos, settings, encoder) for name, videos in systems.items()}
    rivals = {name: scores[name] for name in RIVALS if name in scores}
    advantage = {
        name: paired_intervals(scores[MODEL], rival, settings)["joint_goal_accuracy"] for name, rival in rivals.items()
    }
    texts = {name: text_scores(found.pairs) for name, found in scores.items()}
    report(f"eval   {fast_share:.1%} of the watched frames took the fast path, without lm_head")
    file = root / "evaluations" / str(saved.manifest["run_name"]) / f"{settings.split}-{lineage.key}.json"
    judged = _judge(systems, settings, config.storage.root, report)
    result = EvaluationResult(lineage, scores, advantage, file, fast_share, saved.manifest, sweep, texts, judged, paced)
    _write(result)
    _record(tracking, result)
    report(f"eval   written to {result.file}")
    if not model.startswith("models:/"):
        return result

    def score(champion: SavedModel) -> Scores | None:
        if champion.fingerprint not in {store.fingerprint, *config.vision.equivalent_to}:
            return None
        report("eval   the champion on the same videos")
        watched = stream_views(_streamed(config, champion, store), placed, config.cluster, report, ["watched"])
        return evaluate(watched[MODEL], settings, encoder)

    promoted = promote_if_better(tracking, lineage, scores[MODEL], placed, settings, score, report)
    return replace(result, champion=promoted)


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
    encoder: Identity,
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
            "evaluation": config.evaluation.rules(),
            "encoder": encoder,
            "windows": {name: config.evaluation.matching.window(name) for name in datasets},
            "context": context.model_dump(mode="json"),
            "streaming": config.streaming.decisive(),
            "thresholds": {name: config.streaming.thresholds(saved.thresholds, name) for name in datasets},
        },
        paced=None if config.evaluation.paced is None else config.evaluation.paced.model_dump(mode="json"),
    )


def _sentences(systems: Iterable[Sequence[VideoDecisions]]) -> list[str]:
    """All that any system or its reference says, each once."""
    said = (text for videos in systems for video in videos for text in video.utterances.values())
    wanted = (text for videos in systems for video in videos for text in video.reference_utterances.values())
    return sorted({*said, *wanted})


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


def _sweep(
    stream: Callable[[Sequence[Variant]], dict[Variant, list[VideoDecisions]]],
    settings: EvaluationSettings,
    encoder: SentenceEncoder,
) -> dict[Decides, Curves]:
    """Scores at every threshold of `settings.sweep` for one decision, at the model's own for the other."""
    grid = settings.sweep
    variants_of: dict[Decides, list[Variant]] = {
        "update": [Variant(update=threshold) for threshold in grid],
        "speak": [Variant(speak=threshold) for threshold in grid],
    }
    found: dict[Decides, Curves] = {}
    for name, variants in variants_of.items() if grid else ():
        streamed = stream(variants)
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


def _judge(
    systems: dict[str, list[VideoDecisions]], settings: EvaluationSettings, root: str, report: ReportLine
) -> JudgeReport | None:
    if settings.judge is None:
        return None
    chosen = dict.fromkeys((MODEL, *settings.judge.systems))
    return judge_systems({name: systems[name] for name in chosen}, settings, root, report)


def _write(result: EvaluationResult) -> None:
    values = {
        "lineage": result.lineage.to_dict(),
        "model": result.lineage.model,
        "fast_share": result.fast_share,
        "manifest": result.manifest,
        "scores": {name: scores.to_dict() for name, scores in result.scores.items()},
        "advantage": {name: interval and asdict(interval) for name, interval in result.advantage.items()},
        "sweep": {
            name: {dataset: [asdict(point) for point in points] for dataset, points in curves.items()}
            for name, curves in result.sweep.items()
        },
        "texts": result.texts,
        "judge": result.judge and result.judge.to_dict(),
        "paced": result.paced and result.paced.to_dict(),
    }
    write_json(result.file, values)


def _record(tracking: "Tracking", result: EvaluationResult) -> None:
    """Log the evaluation to an MLflow run of its own, and its scores on the test split to the model's training run."""
    lineage = result.lineage
    training = tracking.find_run(result.manifest.get("mlflow_run", ""))
    more = result.judge.logged(MODEL) if result.judge else {}
    texts = {short: result.texts[MODEL][name] for short, name in score_names().items()}
    more |= {short: value for short, value in texts.items() if value is not None}
    more |= result.paced.metrics() if result.paced else {}
    logged = {**result.scores[MODEL].logged(), **more, "fast_share": result.fast_share}
    metrics = {f"eval/{name}": value for name, value in logged.items()}
    name = f"{result.manifest['run_name']} on {lineage.split}"
    run = tracking.open_evaluation(lineage.key, name, training)
    run.log_parameters({"model": lineage.model, "split": lineage.split, "paced": lineage.paced, **lineage.rules})
    run.log_metrics(metrics)
    run.set_tags({NOTE: _described(result), "marks": "; ".join(lineage.marks())})
    run.log_file(result.file, "evaluation")
    run.finish()
    if training is not None and lineage.split == "test" and not lineage.obstacle:
        training.log_metrics(metrics)
        training.log_file(result.file, "evaluation")


def _described(result: EvaluationResult) -> str:
    """One sentence with data, rules and scores."""
    lineage, scores = result.lineage, result.scores[MODEL].logged()
    shown = ", ".join(f"{name} {scores[name]:.3f}" for name in ("joint_goal_accuracy", "turn_f1") if name in scores)
    marks = "".join(f" ATTENTION: {mark}." for mark in lineage.marks())
    dialogues = counted(lineage.dialogues, "dialogue")
    return f"{lineage.model} on {lineage.split}: {dialogues} of {lineage.count}; {shown}.{marks}"
