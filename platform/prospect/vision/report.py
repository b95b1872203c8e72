"""What an embedding job is given, what became of it, and how both are shown."""

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.table import Table

from prospect.dialogue.timeline import FPS

Status = Literal["done", "skipped", "quarantined"]


@dataclass(frozen=True)
class VideoSource:
    """A video to embed."""

    video_id: str
    path: str
    """A file or URL that every node can read."""
    dataset: str = ""
    split: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of one video."""

    video_id: str
    status: Status
    frames: int = 0
    """T; of a skipped video too, and 0 of a quarantined one."""
    reason: str = ""


@dataclass(frozen=True)
class Group:
    """One row of the final table: the videos of a split of a dataset."""

    dataset: str
    split: str
    videos: int = 0
    frames: int = 0
    hours: float = 0.0
    """Hours of video that the store now holds."""
    quarantined: int = 0


@dataclass
class EmbedReport:
    """What became of all videos of a job, and how fast.

    Attributes:
        sizes: bytes of each video's file, where known; they weigh what is left.
        encoded: frames encoded so far, those of unfinished videos included.
    """

    videos: Sequence[VideoSource]
    store: str
    fingerprint: str
    sizes: dict[str, int] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    encoded: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """How many videos the job was given."""
        return len(self.videos)

    def count(self, status: Status) -> int:
        """How many videos ended so."""
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def frames(self) -> int:
        """Frames of the videos finished now; skipped videos' frames were encoded before."""
        return sum(outcome.frames for outcome in self.outcomes if outcome.status == "done")

    @property
    def hours(self) -> float:
        """Hours of the videos finished now."""
        return self.frames / FPS / 3600

    @property
    def rate(self) -> float:
        """Frames encoded a second, the start of the workers included."""
        return self.encoded / self.seconds if self.seconds else 0.0

    @property
    def quarantined(self) -> dict[str, str]:
        """Video id -> reason."""
        return {o.video_id: o.reason for o in self.outcomes if o.status == "quarantined"}

    def seconds_left(self) -> float | None:
        """Frames that are left, estimated from the files' sizes, over the rate; None before a video is done."""
        if len(self.outcomes) == self.total:
            return 0.0
        size = sum(self.sizes.get(o.video_id, 0) for o in self.outcomes if o.status == "done")
        if not size or not self.rate:
            return None
        finished = {outcome.video_id for outcome in self.outcomes}
        left = sum(size for video_id, size in self.sizes.items() if video_id not in finished)
        return max(0.0, left * self.frames / size - (self.encoded - self.frames)) / self.rate

    def progress(self) -> str:
        """One line: videos, frames a second, time left."""
        left = self.seconds_left()
        ending = "time left unknown" if left is None else f"{datetime.timedelta(seconds=round(left))} left"
        line = f"embed: {len(self.outcomes)}/{self.total} videos, {self.encoded} frames, {self.rate:.0f} frames/s"
        bad = self.count("quarantined")
        return f"{line}, {ending}" + (f", {bad} quarantined" if bad else "")

    def groups(self) -> list[Group]:
        """One row for each dataset and split, sorted."""
        outcomes = {outcome.video_id: outcome for outcome in self.outcomes}
        rows: dict[tuple[str, str], Group] = {}
        for video in self.videos:
            key = (video.dataset, video.split)
            row, outcome = rows.get(key, Group(*key)), outcomes.get(video.video_id)
            frames = row.frames + (outcome.frames if outcome else 0)
            bad = row.quarantined + (outcome is not None and outcome.status == "quarantined")
            rows[key] = Group(*key, row.videos + 1, frames, frames / FPS / 3600, bad)
        return [rows[key] for key in sorted(rows)]

    def summary(self) -> dict[str, Any]:
        """The whole job as plain values."""
        counts = {status: self.count(status) for status in ("done", "skipped", "quarantined")}
        where = {"store": self.store, "fingerprint": self.fingerprint}
        speed = {"frames": self.frames, "hours": self.hours, "seconds": self.seconds, "frames_per_second": self.rate}
        return {**where, **counts, **speed}

    def metrics(self) -> dict[str, float]:
        """The summary's numbers, for a tracker."""
        return {f"embed/{name}": value for name, value in self.summary().items() if isinstance(value, int | float)}

    def to_json(self) -> dict[str, Any]:
        """Summary, groups, and the reason of each quarantined video, as JSON takes it."""
        return self.summary() | {
            "groups": [asdict(group) for group in self.groups()],
            "reasons": self.quarantined,
        }

    def table(self) -> Table:
        """A row for each dataset and split, the total, and each quarantined video with its reason below."""
        caption = "\n".join(f"quarantined {video_id}: {reason}" for video_id, reason in self.quarantined.items())
        speed = f"{self.encoded} frames in {self.seconds:.0f} s, {self.rate:.0f} frames/s"
        title = f"{self.store}\nfingerprint {self.fingerprint}; now {speed}, {self.count('skipped')} videos skipped"
        table = Table("dataset", "split", title=title, caption=caption, title_justify="left", caption_justify="left")
        for name in ("videos", "hours", "frames", "quarantined"):
            table.add_column(name, justify="right")
        groups = self.groups()
        for group in groups:
            table.add_row(group.dataset, group.split, *_cells(group))
        if len(groups) > 1:
            frames, bad = sum(g.frames for g in groups), sum(g.quarantined for g in groups)
            whole = Group("all", "", self.total, frames, frames / FPS / 3600, bad)
            table.add_section()
            table.add_row("all", "", *_cells(whole))
        return table


def _cells(group: Group) -> tuple[str, ...]:
    return str(group.videos), f"{group.hours:.2f}", str(group.frames), str(group.quarantined)


def print_progress(report: EmbedReport) -> None:
    """Prints the report's line."""
    print(report.progress(), flush=True)
