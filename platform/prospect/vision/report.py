"""The embedding job's videos, their outcomes, and the progress line, table and JSON made of them."""

import datetime
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.table import Table

from prospect.dialogue.timeline import FPS
from prospect.vision.settings import DECODER_VERSION

Status = Literal["done", "skipped", "quarantined"]


@dataclass(frozen=True)
class VideoSource:
    """A video to embed."""

    video_id: str
    path: str
    """File or URL that every node can read."""
    dataset: str = ""
    split: str = ""


@dataclass(frozen=True)
class VideoOutcome:
    """The result of one video."""

    video_id: str
    status: Status
    frames: int = 0
    """T, also of a skipped video; 0 for a quarantined one."""
    reason: str = ""
    again: bool = False
    """Whether it replaced an earlier decoder's embedding of the same file."""
    alike: bool = False
    """Whether an earlier decoder's embedding stays because this decoder gives the same pictures."""


@dataclass(frozen=True)
class VideoGroup:
    """One row of the final table: a split of a data set."""

    dataset: str
    split: str
    videos: int = 0
    frames: int = 0
    hours: float = 0.0
    """Hours of video that the store now holds."""
    quarantined: int = 0


@dataclass
class EmbedReport:
    """The outcomes of a job's videos, and its speed.

    Attributes:
        sizes: bytes of each video's file where known, to estimate the time left.
        encoded: frames encoded so far, including those of unfinished videos.
    """

    videos: Sequence[VideoSource]
    store: str
    fingerprint: str
    sizes: dict[str, int] = field(default_factory=dict)
    outcomes: list[VideoOutcome] = field(default_factory=list)
    encoded: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Number of videos in the job."""
        return len(self.videos)

    def count(self, status: Status) -> int:
        """Count the videos with this status."""
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def frames(self) -> int:
        """Frames of the videos that this job finished."""
        return sum(outcome.frames for outcome in self.outcomes if outcome.status == "done")

    @property
    def hours(self) -> float:
        """Hours of the videos that this job finished."""
        return self.frames / FPS / 3600

    @property
    def rate(self) -> float:
        """Frames encoded a second, including the workers' start."""
        return self.encoded / self.seconds if self.seconds else 0.0

    @property
    def quarantined(self) -> dict[str, str]:
        """Video id -> reason."""
        return {o.video_id: o.reason for o in self.outcomes if o.status == "quarantined"}

    def is_nothing_new(self, before: Mapping[str, Mapping[str, str]]) -> bool:
        """Whether no video was embedded and those that failed are the ones that failed before, for the same reasons.

        Args:
            before: `EmbeddingStore.quarantined` before the job.
        """
        failed = {v.video_id: before[v.video_id]["reason"] for v in self.videos if v.video_id in before}
        return self.count("done") == 0 and self.quarantined == failed

    def remarks(self, missing: int = 0) -> list[str]:
        """Return a line on videos that were embedded again and one on those left out, where there are any.

        Args:
            missing: videos that have no file and so are not in the job.
        """
        lines = []
        if again := sum(outcome.again for outcome in self.outcomes):
            lines.append(f"{again} videos embedded again: decoder {DECODER_VERSION} gives other pictures of them")
        paths = {video.video_id: video.path for video in self.videos}
        kinds = Counter(_kind(reason, paths[video_id]) for video_id, reason in self.quarantined.items())
        if missing:
            kinds["no file"] = missing
        if kinds:
            counts = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common())
            lines.append(f"left out {kinds.total()} of {self.total + missing} videos: {counts}")
        return lines

    def seconds_left(self) -> float | None:
        """Estimate the time left from the sizes of the files left; None before the first video is done."""
        if len(self.outcomes) == self.total:
            return 0.0
        size = sum(self.sizes.get(o.video_id, 0) for o in self.outcomes if o.status == "done")
        if not size or not self.rate:
            return None
        finished = {outcome.video_id for outcome in self.outcomes}
        left = sum(size for video_id, size in self.sizes.items() if video_id not in finished)
        return max(0.0, left * self.frames / size - (self.encoded - self.frames)) / self.rate

    def progress(self) -> str:
        """Return one line: videos, frames a second, time left."""
        left = self.seconds_left()
        ending = "time left unknown" if left is None else f"{datetime.timedelta(seconds=round(left))} left"
        line = f"embed: {len(self.outcomes)}/{self.total} videos, {self.encoded} frames, {self.rate:.0f} frames/s"
        bad = self.count("quarantined")
        return f"{line}, {ending}" + (f", {bad} quarantined" if bad else "")

    def groups(self) -> list[VideoGroup]:
        """Return one row for each data set and split, sorted."""
        outcomes = {outcome.video_id: outcome for outcome in self.outcomes}
        rows: dict[tuple[str, str], VideoGroup] = {}
        for video in self.videos:
            key = (video.dataset, video.split)
            row, outcome = rows.get(key, VideoGroup(*key)), outcomes.get(video.video_id)
            frames = row.frames + (outcome.frames if outcome else 0)
            bad = row.quarantined + (outcome is not None and outcome.status == "quarantined")
            rows[key] = VideoGroup(*key, row.videos + 1, frames, frames / FPS / 3600, bad)
        return [rows[key] for key in sorted(rows)]

    def summary(self) -> dict[str, Any]:
        """Return the job's totals as plain values."""
        counts = {status: self.count(status) for status in ("done", "skipped", "quarantined")}
        counts["again"] = sum(outcome.again for outcome in self.outcomes)
        where = {"store": self.store, "fingerprint": self.fingerprint}
        speed = {"frames": self.frames, "hours": self.hours, "seconds": self.seconds, "frames_per_second": self.rate}
        return {**where, **counts, **speed}

    def metrics(self) -> dict[str, float]:
        """Return the summary's numbers under the tracker's names."""
        return {f"embed/{name}": value for name, value in self.summary().items() if isinstance(value, int | float)}

    def to_json(self) -> dict[str, Any]:
        """Return summary, groups and quarantine reasons as JSON values."""
        return self.summary() | {
            "groups": [asdict(group) for group in self.groups()],
            "reasons": self.quarantined,
        }

    def table(self) -> Table:
        """Return a row for each data set and split, the total, and quarantined videos with their reasons below."""
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
            whole = VideoGroup("all", "", self.total, frames, frames / FPS / 3600, bad)
            table.add_section()
            table.add_row("all", "", *_cells(whole))
        return table


def _kind(reason: str, path: str) -> str:
    """Cut from a reason what differs between videos: path, numbers and details."""
    general = re.split(r"[:;]", reason.replace(path, ""))[0].removeprefix("video ")
    return re.sub(r"\d+(\.\d+)?", "N", " ".join(general.split()))


def _cells(group: VideoGroup) -> tuple[str, ...]:
    return str(group.videos), f"{group.hours:.2f}", str(group.frames), str(group.quarantined)


def print_progress(report: EmbedReport) -> None:
    """Print the report's progress line."""
    print(report.progress(), flush=True)
