"""A run's event log, `metrics.jsonl`: rank 0 writes it, the driver shows it and uploads it to the tracker.

Events that could not be uploaded, because the driver died or the server was unreachable, are uploaded by the next job
of the same run.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from prospect.files import write_text
from prospect.messages import first_line

RunEvent = dict[str, Any]
"""`kind` (start, step, validation, streaming, checkpoint, warning, failure, stopped, done, calibration), `time` in
seconds since 1970, `step`, and the kind's numbers."""

_POLL_SECONDS, _LONGEST_PAUSE = 0.5, 10.0


class EventLog:
    """Appends events to a file, each flushed when `write` returns."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file.open("a", encoding="utf-8")
        self._file.write("\n")  # a killed writer may have left half a line

    def write(self, kind: str, **numbers: Any) -> None:
        self._file.write(json.dumps({"kind": kind, "time": time.time(), **numbers}) + "\n")
        self._file.flush()


def read_events(file: Path, offset: int = 0) -> Iterator[tuple[RunEvent, int]]:
    """Events from byte `offset` on, each with the offset behind it; half-written lines are skipped."""
    if not file.is_file():
        return
    with file.open("rb") as lines:
        lines.seek(offset)
        for line in lines:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = json.loads(line)
            except ValueError:
                continue
            yield event, offset


_REPEATED = ("step", "validation", "streaming")
"""Event kinds that a restarted run writes again, for the steps after its checkpoint."""


def drop_repeats(events: Iterable[RunEvent]) -> Iterator[RunEvent]:
    """Leave out what a restarted run repeats: the first event of each step and validation counts.

    Repetitions differ by rounding at most, and a tracker does not replace the first.
    """
    latest: dict[str, int] = {}
    return (event for event in events if _is_new(event, latest))


def _is_new(event: RunEvent, latest: dict[str, int]) -> bool:
    """Whether the event is not a repetition; updates `latest`, the last step by kind."""
    kind, step = event["kind"], event.get("step", -1)
    if kind in _REPEATED and step <= latest.get(kind, -1):
        return False
    latest[kind] = max(step, latest.get(kind, -1))
    return True


def training_seconds(events: Iterable[RunEvent]) -> float:
    """Seconds of training, without the time between a stop and the next start."""
    trained = (event for event in events if event["kind"] != "calibration")
    return sum(after["time"] - before["time"] for before, after in pairwise(trained) if after["kind"] != "start")


class EventFollower:
    """Shows a run's events while they are written, and uploads each of them once, in batches.

    Uploads have their own thread: a slow or unreachable server delays neither the console nor the run. The position in
    the file is saved, so that no event is lost or uploaded twice, whichever process dies.

    Args:
        file: that `EventLog` writes.
        upload: takes a batch. If it raises, the batch is uploaded again later, with newer events.
        show: called with each event of this job.
        report: takes a line when uploads fail, and when they work again.
        timeout: seconds for which the end waits for uploads.
    """

    def __init__(
        self,
        file: Path,
        upload: Callable[[Sequence[RunEvent]], None],
        show: Callable[[RunEvent], None],
        report: Callable[[str], None] = print,
        timeout: float = 120,
    ) -> None:
        self._file = file
        self._mark = file.with_suffix(".offset")
        self._upload, self._show, self._report, self._timeout = upload, show, report, timeout
        self._offset = int(self._mark.read_text() or 0) if self._mark.is_file() else 0
        self._shown = file.stat().st_size if file.is_file() else 0
        self._latest: dict[str, int] = {}
        for event, end in read_events(file):
            if end <= self._offset:
                _is_new(event, self._latest)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=f"training-{run.__name__}", daemon=True)
            for run in (self._run_show, self._run_upload)
        ]
        self.failure: Exception | None = None
        """The error of the last upload, if it failed."""

    def __enter__(self) -> "EventFollower":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed:
            self._timeout = 0  # the error is shown at once
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self.failure:
            self._report(f"train  metrics wait in {self._file} for the tracking server, and for this run's next start")

    def _run_show(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self._show_new()
        self._show_new()

    def _show_new(self) -> None:
        for event, end in read_events(self._file, self._shown):
            self._show(event)
            self._shown = end

    def _run_upload(self) -> None:
        pause = _POLL_SECONDS
        while not self._stop.wait(pause):
            pause = min(2 * pause, _LONGEST_PAUSE) if not self._upload_new() else _POLL_SECONDS
        deadline, pause = time.monotonic() + self._timeout, _POLL_SECONDS
        while not self._upload_new() and time.monotonic() + pause < deadline:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _upload_new(self) -> bool:
        """Upload new events; whether all are uploaded."""
        batch, offset, latest = [], self._offset, dict(self._latest)
        for event, end in read_events(self._file, self._offset):
            offset = end
            if _is_new(event, latest):
                batch.append(event)
        if offset == self._offset:
            return True
        try:
            self._upload(batch)
            write_text(self._mark, str(offset))
        except Exception as error:  # any: a failing tracker is reported, and never ends a training
            if self.failure is None:
                self._report(f"train  metrics cannot be uploaded for now: {first_line(error)}")
            self.failure = error
            return False
        if self.failure:
            self._report("train  metrics are uploaded again")
        self.failure, self._offset, self._latest = None, offset, latest
        return True
