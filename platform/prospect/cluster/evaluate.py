"""Evaluate a model with Ray Data: stream held-out videos, score them beside baselines, promote the better model."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from prospect.cluster.common import ReportLine, report_earlier_decoder
from prospect.cluster.evaluation_result import EvaluationResult, complete_card, record_result, score_predictions
from prospect.cluster.paced import stream_live
from prospect.cluster.stream_views import ALWAYS, MODEL, VIEWS, stream_views, sweep_thresholds
from prospect.config.schema import Config
from prospect.data.embeddings import EmbeddingStore
from prospect.data.prepare import Records, read_records
from prospect.data.sources import split_name
from prospect.errors import DataError
from prospect.evaluation.baselines import Periodic, TimePrior, oracle, right_time_wrong_step, silence
from prospect.evaluation.decision_cache import StreamedModel, hash_model
from prospect.evaluation.judge import require_judge
from prospect.evaluation.lineage import (
    Lineage,
    counted,
    is_told,
    records_fingerprint,
    scoring_rules,
    seen_videos,
    video_names,
)
from prospect.evaluation.metrics import Scores, evaluate
from prospect.evaluation.predictions import Predictions
from prospect.evaluation.records import Placed, VideoDecisions, View
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.thresholds import shown
from prospect.model.saved import SavedModel, read_saved
from prospect.model.settings import HEADS
from prospect.reports.model_card import without_head
from prospect.similarity import Identity, SentenceSimilarity
from prospect.streaming.settings import StreamingSettings
from prospect.terminal import console
from prospect.vision.fingerprint import encoder_fingerprint


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
    else:
        paced = stream_live(streamed, placed, settings.paced, config.cluster, report)
        lineage = replace(lineage, paced={**settings.paced.model_dump(mode="json"), **paced.where()})
        decided = {MODEL: paced.known()}
    sweep = sweep_thresholds(streamed, placed, config.cluster, report, settings, encoder)
    predictions = Predictions(lineage, saved.manifest, decided | baselines, records.videos)
    result = score_predictions(predictions, settings, encoder, root, report, sweep, paced.report() if paced else None)
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
            **scoring_rules(config.evaluation, encoder, datasets),
            "context": context.model_dump(mode="json"),
            "streaming": config.streaming.decisive(),
            "thresholds": {name: config.streaming.thresholds(saved.thresholds, name) for name in datasets},
        },
        paced=None if config.evaluation.paced is None else config.evaluation.paced.model_dump(mode="json"),
    )


def _refuse_seen(lineage: Lineage, settings: EvaluationSettings) -> None:
    if lineage.seen and not settings.allow_seen:
        raise DataError(
            f"`evaluation.split` ({settings.split}): the model was trained or validated on {len(lineage.seen)} of its "
            f"{lineage.videos} videos ({', '.join(lineage.seen[:3])}): hold them out and train again, or give "
            "evaluation.allow_seen=true, which marks the result and promotes nothing",
            field="evaluation.split",
        )


def _thresholds(saved: SavedModel, streaming: StreamingSettings, datasets: set[str]) -> str:
    """One line on the thresholds in use, and where they come from."""
    calibrated = saved.thresholds
    in_force = {dataset: streaming.thresholds(calibrated, dataset) for dataset in datasets}
    if calibrated and streaming.calibrated:
        return f"thresholds calibrated in training: {shown(in_force)}"
    why = "by streaming.calibrated=false" if calibrated else "the model brings no calibrated ones"
    return f"thresholds as configured, {why}: {shown(in_force)}"


def _baselines(records: Records, placed: Sequence[Placed]) -> dict[str, list[VideoDecisions]]:
    training = records.scored("train")
    systems: dict[str, Callable[..., VideoDecisions]] = {
        "silence": silence,
        "periodic": Periodic.fit(training),
        "time prior": TimePrior.fit(timeline for _, timeline in training),
        "right time, wrong step": right_time_wrong_step,
        "oracle": oracle,
    }
    return {name: [system(dialogue, timeline) for dialogue, timeline in placed] for name, system in systems.items()}
