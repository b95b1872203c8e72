"""Hands a process's readings to Ray, whose agent on each node exports them to Prometheus (docs/operations.md)."""

from ray.util.metrics import Counter, Gauge, Histogram
from ray.util.metrics import Metric as Instrument

from prospect.monitoring import Metric, Readings


class Exporter:
    """Belongs to one process that is connected to Ray; a value is exported within ten seconds."""

    def __init__(self) -> None:
        self._instruments: dict[str, Instrument] = {}

    def export(self, readings: Readings) -> None:
        """Hand on what was noted since the last time."""
        for reading in readings.take():
            metric = reading.metric
            instrument = self._instruments.get(metric.name)
            if instrument is None:
                instrument = self._instruments[metric.name] = _instrument(metric)
            tags = {metric.tag: reading.label} if metric.tag else {}
            for value in reading.values:
                _record(instrument, value, tags)


def _instrument(metric: Metric) -> Instrument:
    keys = (metric.tag,) if metric.tag else ()
    if metric.kind == "counter":
        return Counter(metric.name, metric.help, keys)
    if metric.kind == "gauge":
        return Gauge(metric.name, metric.help, keys)
    return Histogram(metric.name, metric.help, list(metric.buckets), keys)


def _record(instrument: Instrument, value: float, tags: dict[str, str]) -> None:
    match instrument:
        case Counter():
            if value > 0:  # Ray refuses to add nothing
                instrument.inc(value, tags)
        case Gauge():
            instrument.set(value, tags)
        case Histogram():
            instrument.observe(value, tags)
