"""Calibrate the thresholds of a finished model by streaming the validation dialogues: the last part of a run.

ROOT/runs/NAME/calibration.json    scores at every threshold of the grid, and the chosen ones
ROOT/runs/NAME/model/config.json   gets the chosen thresholds, so that they travel with the model
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prospect.data.embeddings import EmbeddingStore
from prospect.dialogue.prompt import ContextSettings
from prospect.dialogue.schema import Dialogue
from prospect.dialogue.timeline import place
from prospect.errors import ProspectError
from prospect.evaluation.calibration import Calibration, Calibrator
from prospect.evaluation.settings import CalibrationSettings, EvaluationSettings
from prospect.evaluation.sweep import Decides
from prospect.evaluation.thresholds import shown
from prospect.files import write_json
from prospect.hashing import fingerprint, hash_file
from prospect.messages import first_line
from prospect.model.checkpoint import LoadedModel, load_model
from prospect.similarity import SentenceSimilarity
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.kv_cache.sizing import bytes_per_token
from prospect.streaming.settings import StreamingSettings
from prospect.training.events import EventLog
from prospect.training.settings import TrainingError
from prospect.training.worker_spec import TrainingData, WorkerJob

FILE = "calibration.json"

DIALOGUES_AT_ONCE = 4
"""Dialogues that are streamed at the same time, each at every threshold; more would save little."""

CACHE_BYTES = 2**30
"""Limit of the KV cache when more than one dialogue is streamed: on a CPU it lies in the machine's memory."""


@dataclass(frozen=True)
class CalibrationJob:
    """Inputs of a calibration; the folders are readable and writable where it runs."""

    folder: Path
    """Folder of the run, with the finished model."""
    cache: Path
    """Folder of base models converted from packages."""
    store: str
    """Root of the embedding store."""
    dialogues: Sequence[Dialogue]
    """The validation dialogues."""
    context: ContextSettings
    settings: CalibrationSettings
    streaming: StreamingSettings
    """The engine's settings, for which the thresholds are calibrated."""
    evaluation: EvaluationSettings
    """How turns and transitions are matched."""


def calibrate_run(job: WorkerJob, data: TrainingData, step: int) -> None:
    """Calibrate the run's finished model as `training.calibration` says, with progress in the run's events.

    Raises:
        TrainingError: a dialogue cannot be streamed, or the thresholds cannot be written.
    """
    log, settings = EventLog(job.folder / "metrics.jsonl"), job.training.calibration
    if not settings.enabled:
        message = "thresholds are not calibrated because training.calibration.enabled=false"
        log.write("calibration", step=step, message=message)
        return
    log.write("calibration", step=step, message="calibrating thresholds")
    dialogues = {(clip.dialogue.video_id, clip.dialogue.dialogue_id): clip.dialogue for clip in data.validation}
    task = CalibrationJob(
        job.folder, job.cache, job.store, [*dialogues.values()], job.context, settings, job.streaming, job.evaluation
    )
    try:
        for line in calibrate(task):
            log.write("calibration", step=step, message=line)
    except (ProspectError, OSError, RuntimeError) as error:
        raise TrainingError(
            f"the model is complete, but its thresholds cannot be calibrated: {first_line(error)}; start the same run "
            "again once that is fixed, or with training.calibration.enabled=false",
            field="training.calibration",
        ) from error


def calibrate(job: CalibrationJob) -> Iterator[str]:
    """Write thresholds into the model's folder, and yield lines of progress; an earlier result is reused.

    Raises:
        CheckpointError: the model is missing.
        SessionError: a dialogue cannot be streamed.
        ConfigError: the sentence encoder is missing.
    """
    key = _key(job)
    found = _read(job.folder / FILE)
    if found.get("key") != key:
        for item in _calibrate(job):
            if isinstance(item, str):
                yield f"calibration of {item}"
            else:
                found = {"key": key, "grid": job.settings.grid, **item.to_dict()}
        write_json(job.folder / FILE, found)
    config = job.folder / "model" / "config.json"
    write_json(config, {**_read(config), "thresholds": found["thresholds"]})
    yield from summary_lines(found["thresholds"], found["notes"])


def summary_lines(thresholds: Mapping[str, Mapping[str, float]], notes: Sequence[str]) -> Iterator[str]:
    """The chosen thresholds, and what could not be calibrated, a line each."""
    if thresholds:
        yield f"calibrated thresholds: {shown(thresholds)}"
    yield from notes


def _calibrate(job: CalibrationJob) -> Iterator[str | Calibration]:
    loaded = load_model(job.folder / "model", allow_untrained=True, cache=job.cache)
    store = EmbeddingStore(job.store)
    room = {
        "max_sessions": max_sessions(loaded, job),
        "max_waiting_frames": 10**9,
        "calibrated": False,
    }
    engine = StreamingEngine(loaded, job.context, job.streaming.model_copy(update=room))
    yield f"thresholds, with {engine.attention} on {loaded.model.device}"

    def read(dialogue: Dialogue, start: int, stop: int) -> np.ndarray:
        return store.read(dialogue.video_id, start, stop)

    placed = [(dialogue, place(dialogue, store.num_frames(dialogue.video_id))) for dialogue in job.dialogues]
    encoder = SentenceSimilarity(job.evaluation.similarity)
    calibrator = Calibrator(
        engine, read, job.settings, job.evaluation, encoder, _trained_decisions(loaded, job.streaming)
    )
    yield from calibrator.run(placed)


def max_sessions(loaded: LoadedModel, job: CalibrationJob) -> int:
    """Sessions that the engine needs: several dialogues, each at every threshold."""
    thresholds = len(job.settings.grid)
    dialogue_bytes = thresholds * job.context.max_seq_len * bytes_per_token(loaded.model)
    return thresholds * max(1, min(DIALOGUES_AT_ONCE, len(job.dialogues), CACHE_BYTES // dialogue_bytes))


def _trained_decisions(loaded: LoadedModel, streaming: StreamingSettings) -> list[Decides]:
    """The decisions whose heads were trained."""
    steps = loaded.model.config.trained_steps or {}
    updates = ["dst_update", *(["dst_state"] if streaming.dst_decoder == "readout" else [])]
    decides: list[Decides] = ["update"] if all(steps.get(head) for head in updates) else []
    return [*decides, "speak"] if steps.get("speaking") else decides


def _key(job: CalibrationJob) -> str:
    """A hash of the weights, the settings and the dialogues."""
    weights = [hash_file(file) for file in sorted((job.folder / "model").glob("*.safetensors"))]
    settings = [each.model_dump(mode="json") for each in (job.settings, job.streaming, job.evaluation, job.context)]
    return fingerprint([weights, settings, [dialogue.model_dump(mode="json") for dialogue in job.dialogues]])


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}
