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

import contextlib
import errno
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from prospect.cluster.job import connect
from prospect.data.embeddings import EmbeddingStore
from prospect.data.prepare import Records, frame_statistics, make_clips, read_records, training_texts
from prospect.data.sources import QuarantinedRecord
from prospect.dialogue.vocabulary import Vocabulary
from prospect.errors import ConfigError, ProspectError
from prospect.model.adapters import build_tokenizer
from prospect.reports.curves import plot_run
from prospect.streaming import table
from prospect.tracking import DatasetCard, ModelInterface, Run, Tracking, TrackingError, patiently
from prospect.training.calibration.job import calibrate_model
from prospect.training.console import console_for, summary_table, write_table
from prospect.training.folder import alone, claim, require_same, write_json
from prospect.training.loop import clip_lengths, make_sampler
from prospect.training.manifest import dataset_manifest
from prospect.training.metrics import metric_rows, run_tags, threshold_metrics
from prospect.training.plan import MemoryPlan, plan
from prospect.training.preflight import check_device, own_device, show_plan, trained_parameters
from prospect.training.progress import Event, EventLog, Follower, read_events
from prospect.training.settings import TrainingError, TrainingSettings
from prospect.training.worker import TrainingData, WorkerJob, enter
from prospect.vision.encoder import encoder_fingerprint

if TYPE_CHECKING:
    from prospect.config import Config

Report = Callable[[str], None]

OPERATIONAL = {
    "run_name", "num_workers", "min_workers", "zero_stage", "offload_optimizer", "max_failures", "micro_batch_size",
    "micro_batch_tokens", "activation_checkpointing", "log_every", "save_every", "keep_checkpoints", "eval_every",
    "stream_every", "stream_videos", "stream_minutes", "calibration",
}  # fmt: skip
"""Training settings that may change while a run goes on: they change its course by rounding at most."""

PARAMETERS = ("training", "model", "context", "data", "vision")
"""Sections of the configuration by which runs are compared; `config.json` has all."""

INTERFACE = ModelInterface("prospect.streaming.table", table.INPUTS, table.OUTPUTS, table.PARAMETERS)

_EVALUATED = ("storage", "corpus", "data", "vision", "model", "context", "tracking")
"""Sections that an evaluation shares with its training."""

_REPORTS = ("calibration.json", "curves.json", "quarantine.jsonl")
"""Files of the run's folder that go to MLflow with its pictures."""

_CONTEXTS = {"train": "training", "validation": "validation"}
"""MLflow's words for what a run does with a split."""

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""What a full disk, a quota, a size limit and a disk that was mounted read-only say."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    run_name: str
    model: Path
    """The model's folder."""
    steps: int
    first_loss: float
    last_loss: float
    validation: dict[str, float]
    """`loss` and its parts over the validation split; empty without one."""
    trained_steps: dict[str, int]
    """Optimizer steps in which each head had labels."""
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
    run = patiently(lambda: _open(tracking, config, folder, manifest), report)
    report(f"train  run {settings.run_name!r} is tracked: {tracking.where(run)}")
    with _outcome(run, report):
        job = _worker_job(config, folder, store, run, planned)
        summary = _fit(job, data, root, run, report)
        calibrate_model(job, data.validation, report)
        _keep_reports(run, folder, summary["step"], report)
        version = patiently(
            lambda: tracking.register(config.model.name, run, folder / "model", INTERFACE, summary["step"]), report
        )
        patiently(run.finish, report)
    result = TrainResult(
        run_name=settings.run_name,
        model=folder / "model",
        steps=summary["step"],
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
    report(f"train  compare runs: {tracking.where(run)}")
    return result


def _open(tracking: Tracking, config: "Config", folder: Path, manifest: dict[str, Any]) -> Run:
    """The MLflow run, with everything that is known before the first step."""
    tags = {"records": manifest["records"], "embeddings": manifest["embeddings"], "folder": str(folder)}
    whole = config.model_dump(mode="json")
    run = tracking.open_run(folder, config.training.run_name, config=whole, sections=PARAMETERS, tags=tags)
    run.log_json(manifest, "dataset.json")
    run.log_datasets(
        DatasetCard(f"{name}/{split}", manifest["records"], str(config.data.path), _CONTEXTS[split], counts)
        for name, splits in manifest["datasets"].items()
        for split, counts in splits.items()
    )
    return run


def _keep_reports(run: Run, folder: Path, steps: int, report: Report) -> None:
    """Curves and thresholds of a run that has made all its `steps`, and what it left out."""
    pictures = plot_run(folder)
    files = [file for name in _REPORTS if (file := folder / name).is_file()]
    calibration = folder / "calibration.json"
    chosen = json.loads(calibration.read_text())["thresholds"] if calibration.is_file() else {}
    rows = [(max(steps - 1, 0), time.time(), threshold_metrics(chosen))]

    def upload() -> None:
        for picture in pictures:
            run.log_file(picture, "plots")
        for file in files:
            run.log_file(file)
        run.log_history(rows)

    patiently(upload, report)


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
    return TrainResult(**{**values, "model": Path(values["model"]), "reused": True})


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
            "`training.early_stopping` is set, but no video is held out for validation: hold some out, or drop it.",
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
    planned = plan(config, clip_lengths(data.train), store.dim)
    write_table(trained_parameters(config.model, store.dim), report)
    if "RAY_ADDRESS" not in os.environ:
        workers = min(config.training.num_workers, os.cpu_count() or 1)
        if remark := check_device(config.model, config.training, planned, own_device(), workers):
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


@contextlib.contextmanager
def _outcome(run: Run, report: Report) -> Iterator[None]:
    """Leaves the MLflow run with the status of what went wrong; a server that is away does not hide what it was."""
    try:
        yield
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        try:
            patiently(lambda: run.finish(status), report, seconds=10)
        except TrackingError as away:
            report(f"train  {away}")
        raise


def _fit(job: WorkerJob, data: TrainingData, root: Path, run: Run, report: Report) -> dict[str, Any]:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # how soon an end is seen, or a death
    connect()
    settings = job.training
    gpus = int(ray.cluster_resources().get("GPU", 0))
    workers = _workers(settings, gpus, report)
    trainer = TorchTrainer(
        cast(Any, lambda arguments: enter(**arguments)),
        train_loop_config={"job": job, "data": ray.put(data)},
        scaling_config=ScalingConfig(
            num_workers=cast(Any, _elastic(workers, settings)), use_gpu=gpus > 0, resources_per_worker=_resources(gpus)
        ),
        run_config=RunConfig(
            name=settings.run_name,
            storage_path=str(root / "ray_train"),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            callbacks=cast(Any, [_FailureLog(job.folder)]),
        ),
    )

    def hand_on(events: Sequence[Event]) -> None:
        run.log_history(metric_rows(events))
        if tags := run_tags(events):
            run.set_tags(tags)

    console = console_for(settings.log_every, report)
    with console, Follower(job.folder / "metrics.jsonl", hand_on, console, report):
        summary = _run(trainer, settings)
        if "error" in summary:
            raise TrainingError(summary["error"])
    return summary


class _FailureLog(UserCallback):
    """Notes in the run's events which workers failed; Ray's controller calls it, and restarts them."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "metrics.jsonl"

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        done = max((event["step"] + 1 for event, _ in read_events(self._file) if event["kind"] == "step"), default=0)
        rank, failure = min(worker_exceptions.items())
        reason = f"worker {rank}: {_first_line(failure)}"
        with contextlib.suppress(OSError):  # a disk that is full may be the failure: then the worker's error tells
            EventLog(self._file).write("failure", step=done, workers=len(worker_exceptions), reason=reason)


def _first_line(failure: Exception) -> str:
    cause = getattr(failure, "_base_exc", failure)
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


def _workers(settings: TrainingSettings, gpus: int, report: Report) -> int:
    """As many as asked for; on one machine of our own no more than it has GPUs, or CPUs without any."""
    room = gpus or int(ray.cluster_resources().get("CPU", 1))
    if settings.num_workers <= room:
        return settings.num_workers
    have = f"{room} {'GPU' if gpus else 'CPU'}{'s' if room > 1 else ''}"
    if len(ray.nodes()) == 1 and "RAY_ADDRESS" not in os.environ:
        report(f"train  training.num_workers={settings.num_workers}, but this machine has {have}: {room} it is")
        return room
    least = settings.min_workers or settings.num_workers
    report(f"train  {settings.num_workers} workers wanted, {least} needed to begin; the cluster has {have} now")
    return settings.num_workers


def _elastic(workers: int, settings: TrainingSettings) -> int | tuple[int, int]:
    least = min(settings.min_workers or workers, workers)
    return workers if least == workers else (least, workers)


def _resources(gpus: int) -> dict[str, float]:
    return {"CPU": 1, "GPU": 1} if gpus else {"CPU": 1}


def _run(trainer: TorchTrainer, settings: TrainingSettings) -> dict[str, Any]:
    """Rank 0's summary. Ray's own SIGINT handler stops the workers, and stays installed unless it is removed."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        return cast(Any, trainer.fit()).return_value
    except SystemExit:
        raise KeyboardInterrupt from None
    except TrainingFailedError as error:
        raise _explained(error, settings) from error
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


def _explained(error: TrainingFailedError, settings: TrainingSettings) -> BaseException:
    """A user's mistake as itself, a worker's death in a sentence; a defect keeps its stack trace."""
    failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    for failure in failures:
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, ProspectError):
            return cause
        if isinstance(cause, OSError) and cause.errno in _DISK:
            return TrainingError(
                f"a worker cannot write: {cause}; make room and start the run again, which continues from its last "
                "checkpoint"
            )
    if any(isinstance(failure, ray.exceptions.RayError) for failure in failures):
        return TrainingError(
            f"workers died more than training.max_failures={settings.max_failures} times; the run continues from its "
            f"last checkpoint when started again ({str(failures[0]).strip().splitlines()[0]})"
        )
    return error
