"""Fine-tuning with Ray Train and DeepSpeed: from embeddings and labels to a registered model.

ROOT/runs/NAME/identity.json    the configuration that identifies the run; another one needs another name
ROOT/runs/NAME/tokenizer/       the same for every worker and every resumption
ROOT/runs/NAME/metrics.jsonl    every step, as it happens
ROOT/runs/NAME/checkpoints/     see checkpoint.py
ROOT/runs/NAME/plots/           its curves
ROOT/runs/NAME/curves.json      precision-recall curves of the heads, for the model's weights
ROOT/runs/NAME/calibration.json thresholds that were tried, and the chosen ones
ROOT/runs/NAME/model/           the finished model
ROOT/runs/NAME/result.json      written last: the run is finished
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prospect.cluster.common import ReportLine, report_earlier_decoder
from prospect.config.schema import Config
from prospect.data.embeddings import EmbeddingStore
from prospect.data.prepare import Records, read_records
from prospect.earlier import EARLIER_DEFAULTS
from prospect.errors import ConfigError
from prospect.settings import is_given, with_setting
from prospect.training.console import summary_table, write_table
from prospect.training.events import read_events
from prospect.training.result import TrainResult, read_result
from prospect.training.run_folder import exclusive_lock, read_identity, require_same
from prospect.training.settings import OPERATIONAL
from prospect.vision.fingerprint import encoder_fingerprint

_EVALUATED = ("storage", "corpus", "data", "vision", "model", "context", "tracking")
"""Sections that an evaluation shares with its training."""


def train_and_show(config: Config, report: ReportLine = print) -> None:
    """Run `train` and print its summary, or print only the memory plan with `plan=true`."""
    if config.plan:
        from prospect.cluster.plan import show_plan

        show_plan(config)
        return
    result = train(config, report)
    report("")
    events = [event for event, _ in read_events(result.model.parent / "metrics.jsonl")]
    write_table(summary_table(result, events), report)
    report(f"\nevaluate it: {_evaluation_command(result, sys.argv[1:])}")


def _evaluation_command(result: TrainResult, arguments: Sequence[str]) -> str:
    """The command that scores the model on the same data; `arguments` are those of the training."""
    kept = [each for each in arguments if each.partition("=")[0].partition(".")[0] in _EVALUATED]
    return shlex.join(["python", "jobs/eval.py", *kept, f"evaluation.model=models:/{result.name}/{result.version}"])


def train(config: Config, report: ReportLine = print) -> TrainResult:
    """Fine-tune, track and register a model; continue a run of the same name, or return its result if finished.

    Args:
        config: sections storage, data, vision, model, training, context, streaming, evaluation and tracking.
        report: takes one line of progress at a time.

    Raises:
        DataError: embeddings or labels are missing or belong to other data, or the training split is empty.
        FingerprintError: the embeddings were made by another encoder than `config.vision`.
        ConfigError: the run name belongs to a run of another configuration, or to one that is running now.
        CheckpointError: the base model cannot be loaded.
        TrainingError: the loss is not finite, a disk is full, or workers died more often than
            `training.max_failures`.
        TrackingError: the tracking server stayed unreachable; the model is complete, and the next start registers it.
    """
    settings, root = config.training, _local_path(config.storage.root)
    folder = root / "runs" / settings.run_name
    with exclusive_lock(folder):
        config = _as_begun(config, folder)
        store = EmbeddingStore(root / "embeddings")
        records = read_records(config.data, root / "labels" / "dialogues.jsonl", store)
        store.require(encoder_fingerprint(config.vision), config.vision.equivalent_to)
        report_earlier_decoder(store, "train", report)
        identity = _identity(config, records, store)
        require_same(folder, identity)
        if finished := read_result(folder):
            report(f"train  run {settings.run_name!r} is finished; training.run_name=NAME starts another")
            return finished
        from prospect.cluster.fine_tune import fine_tune  # with torch, transformers, MLflow and Ray

        return fine_tune(config, records, store, identity, folder, report)


def _as_begun(config: Config, folder: Path) -> Config:
    """The configuration with the rules by which the run in `folder` was begun, unless others are asked for."""
    begun = read_identity(folder) or {}
    for name in EARLIER_DEFAULTS.keys() & begun.keys():
        if not is_given(config, name):
            config = with_setting(config, name, begun[name])
    return config


def _local_path(root: str) -> Path:
    path = root.removeprefix("file://")
    if "://" in path:
        raise ConfigError(
            f"`storage.root` is {root}, but training writes plain files: mount it, or give a shared folder.",
            field="storage.root",
        )
    return Path(path)


def _identity(config: Config, records: Records, store: EmbeddingStore) -> dict[str, Any]:
    return {
        "model": config.model.model_dump(mode="json"),
        "context": config.context.model_dump(mode="json"),
        "training": config.training.model_dump(mode="json", exclude=OPERATIONAL),
        "data": {"records": records.fingerprint, "embeddings": store.fingerprint},
    }
