"""What trainings and embeddings export of their progress, from the job's driver; needs a connection to Ray."""

from collections.abc import Iterable, Iterator

from prospect.cluster.exporter import Exporter
from prospect.monitoring import Readings
from prospect.training.events import RunEvent
from prospect.vision.report import VideoOutcome
from prospect.vision.stages import PictureBatch

Progress = VideoOutcome | PictureBatch


class TrainingMetrics:
    """Exports a training's events as they come.

    Args:
        run: its name.
    """

    def __init__(self, run: str) -> None:
        self._run, self._readings, self._exporter = run, Readings(), Exporter()

    def __call__(self, event: RunEvent) -> None:
        """Take an event."""
        note_training(self._readings, self._run, event)
        self._exporter.export(self._readings)


def note_training(readings: Readings, run: str, event: RunEvent) -> None:
    """Note what an event of a training says."""
    match event["kind"]:
        case "step":
            readings.set("prospect_training_step", event["step"] + 1, run)
            readings.set("prospect_training_loss", event["loss"], run)
            readings.count("prospect_training_tokens_total", run, event["tokens"])
            readings.count("prospect_training_clips_total", run, event["clips"])
        case "failure":
            readings.count("prospect_training_failed_workers_total", run, event["workers"])


def export_embedding(events: Iterable[Progress]) -> Iterator[Progress]:
    """Export an embedding's events as they pass."""
    readings, exporter = Readings(), Exporter()
    for event in events:
        note_embedding(readings, event)
        exporter.export(readings)
        yield event


def note_embedding(readings: Readings, event: Progress) -> None:
    """Note what an event of an embedding says."""
    if isinstance(event, VideoOutcome):
        readings.count("prospect_embedding_videos_total", event.status)
    else:
        readings.count("prospect_embedding_frames_total", by=event.frames)
