"""Fine-tuning with Ray Train and DeepSpeed: from embeddings and labels to a registered model.

ROOT/runs/NAME/identity.json    what makes the run itself; another configuration needs another name
ROOT/runs/NAME/tokenizer/       the same for every worker and every resumption
ROOT/runs/NAME/metrics.jsonl    every step, as it happens
ROOT/runs/NAME/checkpoints/     see checkpoint.py
ROOT/runs/NAME/plots/           its curves
ROOT/runs/NAME/curves.json      precision over recall of the heads, at the validation whose weights are the model's
ROOT/runs/NAME/calibration.json what thresholds were tried, and which were chosen
ROOT/runs/NAME/model/           the finished model
ROOT/runs/NAME/result.json      written last: the run is finished
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prospect.data.embeddings import EmbeddingStore
from prospect.data.prepare import Records, frame_statistics, make_clips, read_records, training_texts
from prospect.data.sources import QuarantinedRecord
from prospect.dialogue.vocabulary import Vocabulary
from prospect.errors import ConfigError
from prospect.files import write_json
from prospect.model.adapters import build_tokenizer
from prospect.tracking import Run, Tracking, patiently
from prospect.training.assignment import TrainingData, WorkerJob
from prospect.training.calibration.job import calibrate_model
from prospect.training.console import summary_table, write_table
from prospect.training.fit.job import fit
from prospect.training.folder import alone, claim, require_same
from prospect.training.loop import clip_lengths, make_sampler
from prospect.training.manifest import dataset_manifest
from prospect.training.plan import MemoryPlan, plan
from prospect.training.preflight import check_device, own_device, show_plan, trained_parameters
from prospect.training.progress import read_events
from prospect.training.record.job import hand_on, keep_reports, open_run, outcome, register
from prospect.training.settings import OPERATIONAL
from prospect.vision.encoder import encoder_fingerprint

if TYPE_CHECKING:
    from prospect.config import Config

Report = Callable[[str], None]

_EVALUATED = ("storage", "corpus", "data", "vision", "model", "context", "tracking")
"""Sections that an evaluation shares with its training."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    run_name: str
    model: Path
    """The model's folder."""
    steps: int
    model_step: int
    """The step whose weights are the model: with early stopping that of the best validation, else the last."""
    first_loss: float
    last_loss: float
    validation: dict[str, float]
    """Losses and scores of the model's weights; empty without a validation split."""
    trained_steps: dict[str, int]
    """Optimizer steps up to the model's in which each head had labels."""
    mlflow_run: str
    name: str
    version: int
    """Registered as `models:/NAME/VERSION`, alias `candidate`."""
    quarantined: int
    """Records and events that were left out."""
    reused: bool = False
    """The run had been finished before; nothing was computed."""


def train_and_show(config: "Config", report: Report = print) -> None:
    """`train` with a table at the end; or, with `plan=true`, the plan alone."""
    if config.plan:
        show_plan(config)
        return
    result = train(config, report)
    report("")
    events = [event for event, _ in read_events(result.model.parent / "metrics.jsonl")]
    write_table(summary_table(result, events), report)
    report(f"\nevaluate it: {_evaluation(result, sys.argv[1:])}")


def _evaluation(result: TrainResult, arguments: Sequence[str]) -> str:
    """The command that scores the model on the same data; `arguments` are those of the training."""
    kept = [each for each in arguments if each.partition("=")[0].partition(".")[0] in _EVALUATED]
    return shlex.join(["python", "jobs/eval.py", *kept, f"evaluation.model=models:/{result.name}/{result.version}"])


def train(config: "Config", report: Report = print) -> TrainResult:
    """Fine-tunes, tracks and registers a model; continues a run of the same name, returns a finished one at once.

    Args:
        config: sections storage, data, vision, model, training, context, streaming, evaluation and tracking.
        report: takes one line of progress at a time.

    Raises:
        DataError: no embeddings, no labels that belong to the data, or nothing to train on.
        FingerprintError: the embeddings were made by another encoder than `config.vision`.
        ConfigError: the run name belongs to a run of another configuration, or to one that goes on now.
        CheckpointError: the base model cannot be loaded.
        TrainingError: the loss is not finite, a disk is full, or workers died more often than
            `training.max_failures`.
        TrackingError: the tracking server stayed away; the model is complete, and registered by the next start.
    """
    root = _local(config.storage.root)
    folder = root / "runs" / config.training.run_name
    with alone(folder):
        return _train(config, root, folder, report)


def _train(config: "Config", root: Path, folder: Path, report: Report) -> TrainResult:
    settings = config.training
    store = EmbeddingStore(root / "embeddings")
    records = read_records(config.data, root / "labels" / "dialogues.jsonl", store)
    store.require(encoder_fingerprint(config.vision), config.vision.equivalent_to)
    identity = _identity(config, records, store)
    require_same(folder, identity)
    if finished := _finished(folder):
        report(f"train  run {settings.run_name!r} is finished; training.run_name=NAME starts another")
        return finished
    data, quarantined = _prepare(config, records, store, folder, report)
    planned = _plan(config, data, store, report)
    claim(folder, identity)
    clips = {"train": data.train, "validation": data.validation}
    manifest = dataset_manifest(records, store, clips, len(quarantined))
    tracking = Tracking(config.tracking, root)
    run = patiently(lambda: open_run(tracking, config, folder, manifest), report)
    where = patiently(lambda: tracking.where(run), report)
    report(f"train  run {settings.run_name!r} is tracked: {where}")
    with outcome(run, report):
        job = _worker_job(config, folder, store, run, planned)
        summary = fit(job, data, root, partial(hand_on, run), report)
        calibrate_model(job, data.validation, report)
        keep_reports(run, folder, summary["model_step"], report)
        version = patiently(lambda: register(tracking, config.model.name, run, folder / "model", summary), report)
        patiently(run.finish, report)
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


def _local(root: str) -> Path:
    path = root.removeprefix("file://")
    if "://" in path:
        raise ConfigError(
            f"`storage.root` is {root}, but training writes plain files: mount it, or give a shared folder.",
            field="storage.root",
        )
    return Path(path)


def _identity(config: "Config", records: Records, store: EmbeddingStore) -> dict[str, Any]:
    return {
        "model": config.model.model_dump(mode="json"),
        "context": config.context.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json", exclude=OPERATIONAL),
        "data": {"records": records.fingerprint, "embeddings": store.fingerprint},
    }


def _finished(folder: Path) -> TrainResult | None:
    file = folder / "result.json"
    if not file.is_file() or not (folder / "model").is_dir():
        return None
    values = json.loads(file.read_text())
    return TrainResult(**{"model_step": values["steps"], **values, "model": Path(values["model"]), "reused": True})


def _prepare(
    config: "Config", records: Records, store: EmbeddingStore, folder: Path, report: Report
) -> tuple[TrainingData, list[QuarantinedRecord]]:
    """Clips of both splits and the tokenizer, which lies in the run's folder from now on."""
    train_split, validation_split = records.split("train"), records.split("validation")
    texts = training_texts((d for d, _ in train_split), config.training.clips.summaries)
    tokenizer = build_tokenizer(config.model, texts, folder.parents[1] / "cache")
    tokenizer.save_pretrained(folder / "tokenizer")
    quarantined = list(records.quarantined)
    clips = []
    for split in (train_split, validation_split):
        made, broken = make_clips(
            split, Vocabulary(tokenizer), config.context, config.training.clips, store.tokens_per_frame
        )
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


def _plan(config: "Config", data: TrainingData, store: EmbeddingStore, report: Report) -> MemoryPlan:
    """The memory of a step of these clips; on a machine of our own, what cannot fit stops here."""
    own, workers = "RAY_ADDRESS" not in os.environ, config.training.num_workers
    if own:
        workers = min(workers, torch.cuda.device_count() or os.cpu_count() or 1)
    training = config.training.model_copy(update={"num_workers": workers})
    planned = plan(config.model_copy(update={"training": training}), clip_lengths(data.train), store.dim)
    write_table(trained_parameters(config.model, store.dim), report)
    if own and (remark := check_device(config.model, training, planned, own_device(), workers)):
        report(f"train  {remark}")
    return planned


def _worker_job(config: "Config", folder: Path, store: EmbeddingStore, run: Run, planned: MemoryPlan) -> WorkerJob:
    manifest = {
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
