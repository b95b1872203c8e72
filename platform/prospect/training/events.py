"""What happens in a run, as JSON lines: rank 0 writes, the driver reads, shows and hands on to the tracker.

The file is the tracker's spool: what was not handed on, because the driver died or the server was away, is handed on
by the next job of the same run.
"""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from prospect.files import write_text

RunEvent = dict[str, Any]
"""`kind` (start, step, validation, streaming, checkpoint, warning, failure, stopped, done, calibration), `time` in
seconds since 1970, `step`, and the kind's numbers."""

_POLL_SECONDS, _LONGEST_PAUSE = 0.5, 10.0


class EventLog:
    """Appends events, each complete as soon as `write` returns."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file.open("a", encoding="utf-8")
        self._file.write("\n")  # a killed writer may have left half a line

    def write(self, kind: str, **numbers: Any) -> None:
        self._file.write(json.dumps({"kind": kind, "time": time.time(), **numbers}) + "\n")
        self._file.flush()


def read_events(file: Path, offset: int = 0) -> Iterator[tuple[RunEvent, int]]:
    """Complete events from byte `offset` on, each with the offset behind it; half a line of a killed writer is none."""
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


_ONCE = ("step", "validation", "streaming")
"""Kinds that a restarted run repeats, for steps after its checkpoint."""


def drop_repeats(events: Iterable[RunEvent]) -> Iterator[RunEvent]:
    """Without what a restarted run repeats: the first of each step and validation counts, wherever a run is shown.

    They differ by rounding at most, and a tracker that has the first takes no other in its place.
    """
    latest: dict[str, int] = {}
    return (event for event in events if _is_new(event, latest))


def _is_new(event: RunEvent, latest: dict[str, int]) -> bool:
    """Whether it is no repetition; `latest` has the last step by kind, and learns of this one."""
    kind, step = event["kind"], event.get("step", -1)
    if kind in _ONCE and step <= latest.get(kind, -1):
        return False
    latest[kind] = max(step, latest.get(kind, -1))
    return True


def training_seconds(events: Iterable[RunEvent]) -> float:
    """Between a training's first event and its last, without the time that passed before it was continued."""
    trained = (event for event in events if event["kind"] != "calibration")
    return sum(after["time"] - before["time"] for before, after in pairwise(trained) if after["kind"] != "start")


class EventFollower:
    """Shows a run's events and hands them on while they are written, in batches, each once whatever dies when.

    Handing on has a thread of its own: a server that is slow or away holds up neither the console nor the run.

    Args:
        file: that `EventLog` writes.
        hand_on: takes a batch. If it raises, the batch stays and comes again, with later ones.
        show: called with each event of this job, for the console.
        report: told when handing on fails, and when it works again.
        patience: seconds for which the end waits for what was not handed on yet.
    """

    def __init__(
        self,
        file: Path,
        hand_on: Callable[[Sequence[RunEvent]], None],
        show: Callable[[RunEvent], None],
        report: Callable[[str], None] = print,
        patience: float = 120,
    ) -> None:
        self._file = file
        self._mark = file.with_suffix(".offset")
        self._hand_on, self._show, self._report, self._patience = hand_on, show, report, patience
        self._offset = int(self._mark.read_text() or 0) if self._mark.is_file() else 0
        self._shown = file.stat().st_size if file.is_file() else 0
        self._latest: dict[str, int] = {}
        for event, end in read_events(file):
            if end <= self._offset:
                _is_new(event, self._latest)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=f"training-{run.__name__}", daemon=True)
            for run in (self._run_show, self._run_drain)
        ]
        self.failure: Exception | None = None
        """Why the last batch could not be handed on, if so."""

    def __enter__(self) -> "EventFollower":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed:
            self._patience = 0  # who waits for a reason is told it at once
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

    def _run_drain(self) -> None:
        pause = _POLL_SECONDS
        while not self._stop.wait(pause):
            pause = min(2 * pause, _LONGEST_PAUSE) if not self._drain() else _POLL_SECONDS
        deadline, pause = time.monotonic() + self._patience, _POLL_SECONDS
        while not self._drain() and time.monotonic() + pause < deadline:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _drain(self) -> bool:
        """Hands on what is new; whether nothing is left."""
        batch, offset, latest = [], self._offset, dict(self._latest)
        for event, end in read_events(self._file, self._offset):
            offset = end
            if _is_new(event, latest):
                batch.append(event)
        if offset == self._offset:
            return True
        try:
            self._hand_on(batch)
            write_text(self._mark, str(offset))
        except Exception as error:  # any: a tracker that fails is reported, and never the end of a training
            if self.failure is None:
                self._report(f"train  metrics are not handed on for now: {str(error).strip().splitlines()[0]}")
            self.failure = error
            return False
        if self.failure:
            self._report("train  metrics are handed on again")
        self.failure, self._offset, self._latest = None, offset, latest
        return True
