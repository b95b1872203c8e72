"""The steps of an unfinished training run: clips, memory plan, MLflow run, workers, registration.

Imports torch, transformers, MLflow and Ray; `cluster.train` first finds out whether there is anything to do.
"""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from prospect.cluster.common import ReportLine
from prospect.cluster.cutting import cut_clips
from prospect.cluster.gpus import Allotment, allot
from prospect.cluster.plan import plan
from prospect.cluster.record import describe, open_run, record_failure, register, upload_events, upload_reports
from prospect.cluster.runtime import owns_ray
from prospect.cluster.workers import fit
from prospect.config.schema import Config
from prospect.data.embeddings import EmbeddingStore
from prospect.data.prepare import Records, frame_statistics, training_texts
from prospect.data.sources import QuarantinedRecord
from prospect.dialogue.sequence import SequenceBuilder
from prospect.dialogue.vocabulary import Vocabulary
from prospect.errors import ConfigError
from prospect.evaluation.lineage import TRAINED_ON, video_names
from prospect.files import write_json
from prospect.model.adapters import build_tokenizer
from prospect.model.licence import licence_of_base
from prospect.reports.model_card import without_head, write_card
from prospect.tracking.retry import retry_until_available
from prospect.tracking.run import TrackedRun
from prospect.tracking.settings import NOTE
from prospect.tracking.tracking import Tracking
from prospect.training.console import write_table
from prospect.training.loop import clip_lengths, make_sampler
from prospect.training.manifest import dataset_manifest
from prospect.training.memory_plan import MemoryPlan
from prospect.training.preflight import check_device, describe_device, trained_parameters
from prospect.training.result import TrainResult
from prospect.training.run_folder import write_identity
from prospect.training.worker_spec import TrainingData, WorkerJob


def fine_tune(
    config: Config,
    records: Records,
    store: EmbeddingStore,
    identity: dict[str, Any],
    folder: Path,
    report: ReportLine,
) -> TrainResult:
    """Train, calibrate, track and register a model; raises as `train` does.

    Args:
        config: of the run.
        records: dialogues of all splits.
        store: embeddings of their videos.
        identity: configuration by which a later start recognises the run.
        folder: of the run.
        report: takes one line of progress at a time.
    """
    settings, root = config.training, folder.parents[1]
    data, quarantined = _prepare(config, records, store, folder, report)
    allotment = allot(config.cluster, "train", report)
    planned = _plan(config, data, store, allotment, report)
    write_identity(folder, identity)
    clips = {"train": data.train, "validation": data.validation}
    manifest = dataset_manifest(records, store, clips, len(quarantined))
    tracking = Tracking(config.tracking, root)
    run = retry_until_available(lambda: open_run(tracking, config, folder, manifest), report)
    where = retry_until_available(lambda: tracking.where(run), report)
    report(f"train  run {settings.run_name!r} is tracked: {where}")
    with record_failure(run, report):
        job = _worker_job(config, folder, store, run, planned, data)
        summary = fit(job, data, root, allotment, partial(upload_events, run), report)
        upload_reports(run, folder, summary["model_step"], report)
        about = describe(manifest, summary)
        licence = licence_of_base(config.model.base, root / "cache")
        card = write_card(folder / "model", manifest, licence, about)
        version = retry_until_available(
            lambda: register(tracking, config.model.name, run, folder / "model", summary, without_head(card)), report
        )
        retry_until_available(lambda: run.set_tags({NOTE: about}), report)
        retry_until_available(run.finish, report)
    result = TrainResult(
        run_name=settings.run_name,
        model=folder / "model",
        steps=summary["step"],
        model_step=summary["model_step"],
        first_loss=summary["first_loss"],
        last_loss=summary["last_loss"],
        validation=summary["validation"],
        trained_steps=summary["trained_steps"],
        mlflow_run=run.id,
        name=config.model.name,
        version=version,
        quarantined=len(quarantined),
    )
    write_json(folder / "result.json", {**asdict(result), "model": str(result.model)})
    report(f"train  model {result.model}, registered as models:/{result.name}/{version} (candidate)")
    report(f"train  compare runs: {where}")
    return result


def _prepare(
    config: Config, records: Records, store: EmbeddingStore, folder: Path, report: ReportLine
) -> tuple[TrainingData, list[QuarantinedRecord]]:
    """Cut the clips of both splits, and write the tokenizer into the run's folder."""
    train_split, validation_split = records.split("train"), records.split("validation")
    texts = training_texts((d for d, _ in train_split), config.training.clips.summaries)
    tokenizer = build_tokenizer(config.model, texts, folder.parents[1] / "cache")
    tokenizer.save_pretrained(folder / "tokenizer")
    quarantined = list(records.quarantined)
    builder = SequenceBuilder(Vocabulary(tokenizer), config.context, store.tokens_per_frame)
    clips = []
    for split in (train_split, validation_split):
        made, broken = cut_clips(split, builder, config.training.clips, folder.parents[1] / "cache", report)
        clips.append(made)
        quarantined += broken
    if quarantined:
        file = folder / "quarantine.jsonl"
        file.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in quarantined))
        report(f"train  {len(quarantined)} records or events left out, listed in {file}; the first: {quarantined[0]}")
    make_sampler(clips[0], config.training)
    if config.training.early_stopping and not clips[1]:
        raise ConfigError(
            "`training.early_stopping` is set, but no video is held out for validation: mark some records with "
            "`split: validation`, or set training.early_stopping=null.",
            field="training.early_stopping",
        )
    if config.training.clips.summaries and not any(clip.closing_summary for clip in clips[0]):
        raise ConfigError(
            "`training.clips.summaries` is true, but no clip has a summary to learn: the records' assistant turns "
            "need `progress`, and context.max_summary_tokens room for it; or set it to false.",
            field="training.clips.summaries",
        )
    statistics = None
    if config.model.whiten_frames:
        statistics = frame_statistics(store, (d.video_id for d, _ in train_split), config.training.seed)
    return TrainingData(clips[0], clips[1], statistics), quarantined


def _plan(
    config: Config, data: TrainingData, store: EmbeddingStore, allotment: Allotment, report: ReportLine
) -> MemoryPlan:
    """Plan the memory of a step; where this process starts Ray, raise if it cannot fit this machine."""
    own, workers = owns_ray(), config.training.num_workers
    if own:
        workers = min(workers, allotment.gpus or max(1, int(allotment.cpus)))
    training = config.training.model_copy(update={"num_workers": workers})
    planned = plan(config.model_copy(update={"training": training}), clip_lengths(data.train), store.dim)
    write_table(trained_parameters(config.model, store.dim), report)
    if own and (remark := check_device(config.model, training, planned, describe_device(allotment.gpus > 0), workers)):
        report(f"train  {remark}")
    return planned


def _worker_job(
    config: Config, folder: Path, store: EmbeddingStore, run: TrackedRun, planned: MemoryPlan, data: TrainingData
) -> WorkerJob:
    manifest = {
        TRAINED_ON: video_names(clip.dialogue for clip in [*data.train, *data.validation]),
        "streaming": config.streaming.decisive(),
        "vision": config.vision.model_dump(mode="json"),
        "context": config.context.model_dump(mode="json"),
        "fingerprint": store.fingerprint,
        "run_name": folder.name,
        "mlflow_run": run.id,
        "seed": config.training.seed,
    }
    cache = folder.parents[1] / "cache"
    return WorkerJob(
        model=config.model,
        training=config.training,
        context=config.context,
        folder=folder,
        cache=cache,
        store=store.root,
        manifest=manifest,
        planned=planned,
        streaming=config.streaming,
        evaluation=config.evaluation,
    )
