"""The last part of a run: thresholds for the finished model, from streaming the validation dialogues.

ROOT/runs/NAME/calibration.json    every threshold that was tried, what it gave, and what was chosen
ROOT/runs/NAME/model/config.json   gets what was chosen, so that it travels with the model
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
from prospect.evaluation.calibration import Calibration, Calibrator, Decides
from prospect.evaluation.settings import CalibrationSettings, EvaluationSettings
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
"""At every threshold; more would save little."""

CACHE_BYTES = 2**30
"""Of keys and values that more than one dialogue at a time may take: on a CPU they lie in the machine's memory."""


@dataclass(frozen=True)
class CalibrationJob:
    """Everything that it takes; folders are readable and writable where it runs."""

    folder: Path
    """The run's, with the finished model."""
    cache: Path
    """Of converted packaged bases."""
    store: str
    """Root of the embedding store."""
    dialogues: Sequence[Dialogue]
    """Of validation."""
    context: ContextSettings
    settings: CalibrationSettings
    streaming: StreamingSettings
    """The engine's, in which the thresholds are to hold."""
    evaluation: EvaluationSettings
    """How turns and transitions are matched."""


def calibrate_run(job: WorkerJob, data: TrainingData, step: int) -> None:
    """Gives the run's finished model its thresholds, as `training.calibration` says; the run's events tell of it.

    Raises:
        TrainingError: a dialogue cannot be streamed, or the thresholds cannot be written.
    """
    log, settings = EventLog(job.folder / "metrics.jsonl"), job.training.calibration
    if not settings.enabled:
        message = "thresholds are not calibrated, as training.calibration.enabled=false says"
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
    except (ProspectError, OSError) as error:
        raise TrainingError(
            f"the model is complete, but its thresholds cannot be calibrated: {first_line(error)}; start the same run "
            "again when that is mended, or with training.calibration.enabled=false",
            field="training.calibration",
        ) from error


def calibrate(job: CalibrationJob) -> Iterator[str]:
    """Writes the thresholds to the model's folder and yields lines of progress; what was found before is used again.

    Raises:
        CheckpointError: there is no model.
        SessionError: a dialogue cannot be streamed.
        ConfigError: there is no sentence encoder.
    """
    key = _key(job)
    found = _read(job.folder / FILE)
    if found.get("key") != key:
        for news in _calibrate(job):
            if isinstance(news, str):
                yield f"calibration of {news}"
            else:
                found = {"key": key, "grid": job.settings.grid, **news.to_dict()}
        write_json(job.folder / FILE, found)
    config = job.folder / "model" / "config.json"
    write_json(config, {**_read(config), "thresholds": found["thresholds"]})
    yield from summary_lines(found["thresholds"], found["notes"])


def summary_lines(thresholds: Mapping[str, Mapping[str, float]], notes: Sequence[str]) -> Iterator[str]:
    """What was chosen and what could not be, a line each."""
    if thresholds:
        yield f"calibrated thresholds: {shown(thresholds)}"
    yield from notes


def _calibrate(job: CalibrationJob) -> Iterator[str | Calibration]:
    loaded = load_model(job.folder / "model", allow_untrained=True, cache=job.cache, device="auto")
    store = EmbeddingStore(job.store)
    room = {
        "max_sessions": max_sessions(loaded, job),
        "max_waiting_frames": 10**9,
        "calibrated": False,
    }
    engine = StreamingEngine(loaded, job.context, job.streaming.model_copy(update=room))

    def read(dialogue: Dialogue, start: int, stop: int) -> np.ndarray:
        return store.read(dialogue.video_id, start, stop)

    placed = [(dialogue, place(dialogue, store.num_frames(dialogue.video_id))) for dialogue in job.dialogues]
    encoder = SentenceSimilarity(job.evaluation.similarity)
    calibrator = Calibrator(engine, read, job.settings, job.evaluation, encoder, _trained(loaded, job.streaming))
    yield from calibrator.run(placed)


def max_sessions(loaded: LoadedModel, job: CalibrationJob) -> int:
    """Sessions of the engine: each of some dialogues at every threshold."""
    thresholds = len(job.settings.grid)
    dialogue_bytes = thresholds * job.context.max_seq_len * bytes_per_token(loaded.model)
    return thresholds * max(1, min(DIALOGUES_AT_ONCE, len(job.dialogues), CACHE_BYTES // dialogue_bytes))


def _trained(loaded: LoadedModel, streaming: StreamingSettings) -> list[Decides]:
    """The decisions that the model has learned to make."""
    steps = loaded.model.config.trained_steps or {}
    updates = ["dst_update", *(["dst_state"] if streaming.dst_decoder == "readout" else [])]
    decides: list[Decides] = ["update"] if all(steps.get(head) for head in updates) else []
    return [*decides, "speak"] if steps.get("speaking") else decides


def _key(job: CalibrationJob) -> str:
    """Changes with the weights and with everything that is tried on them."""
    weights = [hash_file(file) for file in sorted((job.folder / "model").glob("*.safetensors"))]
    settings = [each.model_dump(mode="json") for each in (job.settings, job.streaming, job.evaluation, job.context)]
    return fingerprint([weights, settings, [dialogue.model_dump(mode="json") for dialogue in job.dialogues]])


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.is_file() else {}
