"""What an operator sees: the table of all metrics, and the values that a process notes until they are exported.

Knows no Ray: `prospect.cluster.exporter` hands the values to Ray's metrics agent, which Prometheus reads as
`ray_NAME`.
"""

import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
EXPORTED_AS = "ray_"
"""What Ray puts before a metric's name."""
MOST_OBSERVED = 10_000
"""Values of one histogram that are kept for an export which may never come."""

_WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STEPS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_MOVES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True)
class Metric:
    """One metric; its unit is the last word of its name, before `_total`."""

    name: str
    kind: Kind
    by: str
    """What has it: gateway, engine, encoder, training or embedding."""
    help: str
    tag: str = ""
    """Its one label; empty: none. Never a session: there are too many of them."""
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets."""


_TABLE = (
    Metric("prospect_sessions", "gauge", "gateway", "Open sessions."),
    Metric("prospect_sessions_opened_total", "counter", "gateway", "Sessions opened."),
    Metric("prospect_sessions_resumed_total", "counter", "gateway", "Sessions continued on another stream."),
    Metric("prospect_sessions_ended_total", "counter", "gateway", "Sessions that ended, by why.", "reason"),
    Metric("prospect_frames_total", "counter", "gateway", "Frames taken: pictures or embeddings.", "kind"),
    Metric("prospect_frames_dropped_total", "counter", "gateway", "Frames dropped and declared."),
    Metric("prospect_frames_lost_total", "counter", "gateway", "Decided frames that no later context can show."),
    Metric("prospect_frames_waiting", "gauge", "gateway", "Frames taken and not decided."),
    Metric("prospect_decisions_total", "counter", "gateway", "Frames decided: silent, speak, update or both.", "act"),
    Metric(
        "prospect_decision_seconds", "histogram", "gateway", "From a frame's arrival to its decision.", buckets=_WAITS
    ),
    Metric("prospect_refreshes_total", "counter", "gateway", "Contexts rebuilt."),
    Metric("prospect_move_seconds", "histogram", "gateway", "Moves of sessions to another process.", buckets=_MOVES),
    Metric("prospect_refused_total", "counter", "gateway", "Messages and requests refused, by code.", "code"),
    Metric("prospect_engines", "gauge", "gateway", "Engines that take sessions."),
    Metric("prospect_store_lag_seconds", "gauge", "gateway", "Age of the oldest change that the store lacks."),
    Metric("prospect_store_away", "gauge", "gateway", "1 while the session store is away, or behind."),
    Metric("prospect_engine_sessions", "gauge", "engine", "Sessions: in the KV cache, or parked.", "place"),
    Metric("prospect_engine_capacity", "gauge", "engine", "Sessions that have a place."),
    Metric("prospect_engine_frames_total", "counter", "engine", "Frames decided."),
    Metric("prospect_engine_frames_waiting", "gauge", "engine", "Frames that wait to be decided."),
    Metric("prospect_engine_tokens_total", "counter", "engine", "Tokens through the trunk."),
    Metric("prospect_step_seconds", "histogram", "engine", "Steps that had work.", buckets=_STEPS),
    Metric("prospect_kv_pages", "gauge", "engine", "Pages of the KV cache: used, cached or free.", "use"),
    Metric("prospect_pictures_encoded_total", "counter", "encoder", "Pictures encoded."),
    Metric("prospect_pictures_waiting", "gauge", "encoder", "Pictures that wait to be encoded."),
    Metric("prospect_encode_seconds", "histogram", "encoder", "Batches of pictures.", buckets=_STEPS),
    Metric("prospect_gpu_memory_bytes", "gauge", "engine, encoder", "Memory that the process holds on its GPU."),
    Metric("prospect_training_step", "gauge", "training", "Steps done.", "run"),
    Metric("prospect_training_loss", "gauge", "training", "Loss of the last step.", "run"),
    Metric("prospect_training_tokens_total", "counter", "training", "Tokens trained on.", "run"),
    Metric("prospect_training_clips_total", "counter", "training", "Clips trained on.", "run"),
    Metric("prospect_training_failed_workers_total", "counter", "training", "Workers that failed.", "run"),
    Metric("prospect_embedding_frames_total", "counter", "embedding", "Frames encoded."),
    Metric("prospect_embedding_videos_total", "counter", "embedding", "Videos done, skipped or quarantined.", "status"),
)
METRICS = {metric.name: metric for metric in _TABLE}
"""All metrics by name; docs/operations.md has the same table."""


@dataclass(frozen=True)
class Reading:
    """New values of a metric: what a counter has grown by, what a gauge is, or what a histogram is to take."""

    metric: Metric
    label: str
    values: Collection[float]


class Readings:
    """Values noted and not exported yet. Any thread may note; a note costs less than a microsecond."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], float] = {}
        self._totals: dict[tuple[str, str], float] = {}
        """Of counters that are kept elsewhere, as they were last read."""
        self._gauges: dict[tuple[str, str], float] = {}
        self._observed: dict[str, deque[float]] = {}

    def count(self, name: str, label: str = "", by: float = 1.0) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name, label] = self._counts.get((name, label), 0.0) + by

    def total(self, name: str, total: float, label: str = "") -> None:
        """Note where a counter stands that is kept elsewhere."""
        with self._lock:
            grown = total - self._totals.get((name, label), 0.0)
            self._totals[name, label] = total
            self._counts[name, label] = self._counts.get((name, label), 0.0) + grown

    def set(self, name: str, value: float, label: str = "") -> None:
        """Note the value of a gauge."""
        with self._lock:
            self._gauges[name, label] = value

    def observe(self, name: str, value: float) -> None:
        """Note a value of a histogram."""
        with self._lock:
            self._observed.setdefault(name, deque(maxlen=MOST_OBSERVED)).append(value)

    def take(self) -> list[Reading]:
        """Return what is new since the last time; gauges are repeated."""
        with self._lock:
            counts, self._counts = self._counts, {}
            observed, self._observed = self._observed, {}
            gauges = dict(self._gauges)
        taken = [Reading(METRICS[name], label, (value,)) for (name, label), value in (counts | gauges).items()]
        return taken + [Reading(METRICS[name], "", values) for name, values in observed.items()]
