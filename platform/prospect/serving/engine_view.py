"""What others learn of an engine: what it serves, and how it is."""

from prospect.devices import gpu_bytes
from prospect.dialogue.timeline import FPS
from prospect.monitoring import Readings
from prospect.protocol.messages import ModelCard
from prospect.serving.replay import Json
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.stats import EngineStats


def card_of(engine: StreamingEngine, version: str, accepts_images: bool) -> Json:
    """The answer to a gateway that connects."""
    loaded = engine.loaded
    calibrated = loaded.model.config.thresholds or {}
    card = ModelCard(
        name=str(loaded.manifest.get("model", {}).get("name", "")),
        version=version,
        fingerprint=loaded.fingerprint,
        fps=FPS,
        tokens_per_frame=loaded.model.config.tokens_per_frame,
        dim=loaded.model.config.vision_dim,
        accepts_images=accepts_images,
    )
    return {
        "card": card.model_dump(),
        "accepted": sorted(engine.accepted_fingerprints),
        "capacity": engine.capacity,
        "max_waiting": engine.settings.max_waiting_frames,
        "thresholds": {dataset: engine.settings.thresholds(calibrated, dataset) for dataset in ("", *calibrated)},
    }


def note_engine(readings: Readings, stats: EngineStats, waiting: int) -> None:
    """Note an engine's gauges and totals.

    Args:
        readings: of its process.
        stats: of the engine.
        waiting: frames that it has and has not decided.
    """
    readings.set("prospect_engine_sessions", stats.sessions - stats.parked, "resident")
    readings.set("prospect_engine_sessions", stats.parked, "parked")
    readings.set("prospect_engine_capacity", stats.capacity)
    readings.set("prospect_engine_frames_waiting", waiting)
    readings.total("prospect_engine_frames_total", stats.frames)
    readings.total("prospect_engine_tokens_total", stats.tokens)
    for use in ("used", "cached", "free"):
        readings.set("prospect_kv_pages", getattr(stats.pages, use), use)
    note_gpu(readings)


def note_gpu(readings: Readings) -> None:
    """Note what this process holds of its GPU, if it has one."""
    if (held := gpu_bytes()) is not None:
        readings.set("prospect_gpu_memory_bytes", held)
