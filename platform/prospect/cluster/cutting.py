"""Dialogues cut into clips by all cores of the cluster, with progress."""

import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from prospect.cluster.common import ReportLine
from prospect.cluster.runtime import connect
from prospect.data.clips import Clip
from prospect.data.cuts import Found, Placed, find_all, make_clips
from prospect.data.settings import ClipSettings
from prospect.data.sources import QuarantinedRecord
from prospect.dialogue.sequence import SequenceBuilder

PROBE_S, WORTH_S = 2.0, 20.0
"""Seconds after which the rest is estimated, and from which on it goes to tasks, whose workers are slow to start."""
TASK_S = 3.0
"""Seconds of work that a task gets: each reads the tokenizer first."""
PROGRESS_S = 5.0
"""Seconds between two lines of progress."""


def cut_clips(
    placed: Sequence[Placed], builder: SequenceBuilder, clips: ClipSettings, cache: Path, report: ReportLine
) -> tuple[list[Clip], list[QuarantinedRecord]]:
    """As `make_clips`: cuts that are kept below `cache` are not made again, and what takes long goes to Ray tasks."""

    def find(missing: Sequence[Placed]) -> Iterator[Found]:
        began = time.monotonic()
        for done, found in enumerate(find_all(builder, clips, missing), 1):
            yield found
            took = time.monotonic() - began
            if took > PROBE_S and took / done * (len(missing) - done) > WORTH_S:
                per_task = max(1, round(TASK_S * done / took))
                yield from _in_tasks(missing, done, per_task, builder, clips, report)
                return

    return make_clips(placed, builder, clips, cache / "cuts", find)


def _in_tasks(
    missing: Sequence[Placed],
    first: int,
    per_task: int,
    builder: SequenceBuilder,
    clips: ClipSettings,
    report: ReportLine,
) -> Iterator[Found]:
    """The cuts of `missing[first:]`, by tasks of `per_task` dialogues."""
    import ray

    connect()
    shared: Any = ray.put((builder, clips))

    @ray.remote
    def task(settings: tuple[SequenceBuilder, ClipSettings], some: list[Placed]) -> list[Found]:
        return list(find_all(*settings, some))

    starts = range(first, len(missing), per_task)
    tasks = [task.remote(shared, list(missing[start : start + per_task])) for start in starts]
    began = shown = time.monotonic()
    done = first
    for each in tasks:
        found = ray.get(each)
        yield from found
        done += len(found)
        now = time.monotonic()
        if now - shown >= PROGRESS_S:
            left = timedelta(seconds=round((now - began) / (done - first) * (len(missing) - done)))
            report(f"train  {done:,}/{len(missing):,} dialogues cut into clips, {left} left")
            shown = now
