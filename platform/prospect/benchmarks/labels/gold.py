"""Gold alignments: real videos whose annotators assigned each line to a step."""

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prospect.dialogue.schema import Annotation
from prospect.errors import DataError

RawGold = Mapping[str, Any]
_NUMBER = re.compile(r"^\s*\d+[.)]\s*")


@dataclass(frozen=True)
class GoldVideo:
    """Steps, blocks in the order of their start, and the step of each block."""

    video_id: str
    steps: tuple[str, ...]
    blocks: tuple[Annotation, ...]
    gold: tuple[int, ...]
    """Index of each block's step; -1 before the first one, the number of steps behind the last."""
    spans: tuple[tuple[float, float], ...]
    """Start and end of each step as annotated, seconds."""

    @property
    def tuning(self) -> bool:
        """Whether parameters may be chosen on this video: by a hash of its id, so for half of them."""
        return hashlib.sha256(self.video_id.encode()).digest()[-1] % 2 == 0

    @property
    def in_order(self) -> bool:
        """Whether a monotone alignment can be right everywhere."""
        return bool((np.diff(self.gold) >= 0).all())


@dataclass(frozen=True)
class Gold:
    """One data set."""

    videos: tuple[GoldVideo, ...]
    excluded: Mapping[str, int]
    """Counts of what was left out, by reason."""


def read(folder: Path, name: str) -> list[RawGold]:
    """The videos of one prepared file.

    Raises:
        DataError: it is not there.
    """
    path = folder / f"{name}.jsonl.gz"
    if not path.is_file():
        raise DataError(f"suite.path: {path} does not exist; give the folder of the prepared data", field="suite.path")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def goalstep(folder: Path) -> Gold:
    """Substeps as blocks, their parents as steps, in videos with at least two parents."""
    videos, rows = [], read(folder, "goalstep_val")
    childless = 0
    for row in rows:
        steps = [step for step in row["steps"] if step["substeps"]]
        if len(steps) < 2:
            continue
        childless += len(row["steps"]) - len(steps)
        lines = [
            (_annotation(sub["start"], sub["end"], sub["text"]), k)
            for k, step in enumerate(steps)
            for sub in step["substeps"]
        ]
        videos.append(_video(row["video_id"], steps, lines))
    excluded = {
        "videos with fewer than two steps that have substeps": len(rows) - len(videos),
        "steps without substeps in the other videos": childless,
    }
    return Gold(tuple(videos), excluded)


def holoassist_turns(folder: Path, limit: int) -> Gold:
    """What the instructor said as blocks; the step during which each utterance began."""
    videos, outside, skipped = [], 0, 0
    for row in sampled(read(folder, "holoassist"), limit):
        turns = [turn for turn in row["turns"] if turn["role"] == "assistant" and turn["text"].strip()]
        lines = []
        for turn in turns:
            during = [k for k, step in enumerate(row["steps"]) if step["start"] <= turn["start"] < step["end"]]
            if during:
                lines.append((_annotation(turn["start"], turn.get("end"), turn["text"]), during[0]))
        outside += len(turns) - len(lines)
        used = sorted({k for _, k in lines})
        video = _video(row["video_id"], [row["steps"][k] for k in used], [(line, used.index(k)) for line, k in lines])
        if len(used) < 2 or not video.in_order:
            skipped += 1
        else:
            videos.append(video)
    excluded = {"videos with fewer than two talked-about steps, or steps that overlap": skipped}
    return Gold(tuple(videos), excluded | {"utterances outside every step": outside})


def egoexolearn_lines(folder: Path, limit: int) -> Gold:
    """Steps of several sentences: the first one is the step's name, the others are blocks without real times."""
    videos, short = [], 0
    for row in sampled(read(folder, "egoexolearn"), limit):
        steps: list[dict[str, Any]] = []
        lines: list[tuple[Annotation, int]] = []
        for step in sorted(row["steps"], key=lambda step: step["start"]):
            sentences = [_NUMBER.sub("", line).strip() for line in step["text"].splitlines()]
            name, *rest = [sentence for sentence in sentences if sentence] or [""]
            short += not rest
            if rest:
                first = len(lines)
                lines += [(_annotation(first + i, first + i + 1, text), len(steps)) for i, text in enumerate(rest)]
                steps.append({"text": name, "start": first, "end": len(lines)})
        if len(steps) >= 2:
            videos.append(_video(row["video_id"], steps, lines))
    return Gold(tuple(videos), {"steps of a single sentence": short})


_BEFORE = {True: ("Start", "begin", "Beginning of the task"), False: ("start", "The recording starts", "intro")}
_AFTER = {True: ("done", "finished", "Task complete"), False: ("Done", "The video ends", "end of task")}
"""Bookkeeping lines, others on the tuning half than on the report half."""


def bookkept(gold: Gold) -> Gold:
    """The same videos with a line before and one behind the steps, as WTaG's annotators write `start` and `Done`."""
    return Gold(tuple(map(_bookkept, gold.videos)), gold.excluded)


def _bookkept(video: GoldVideo) -> GoldVideo:
    draw = hashlib.sha256(video.video_id.encode()).digest()
    first = video.blocks[0].start
    last = max(block.start if block.end is None else block.end for block in video.blocks)
    before = Annotation(start=max(0.0, first - (0, 2, 5, 15)[draw[0] % 4]), text=_BEFORE[video.tuning][draw[1] % 3])
    after = Annotation(start=last + (0, 1, 3, 10)[draw[2] % 4], text=_AFTER[video.tuning][draw[3] % 3])
    return replace(video, blocks=(before, *video.blocks, after), gold=(-1, *video.gold, len(video.steps)))


def sampled(rows: Iterable[RawGold], limit: int) -> list[RawGold]:
    """The same `limit` videos at every call, wherever they stand in the file."""
    return sorted(rows, key=lambda row: hashlib.sha256(row["video_id"].encode()).digest())[:limit]


def _video(name: str, steps: Sequence[RawGold], lines: list[tuple[Annotation, int]]) -> GoldVideo:
    lines = sorted(lines, key=lambda pair: (pair[0].start, pair[0].end or pair[0].start))
    return GoldVideo(
        name,
        tuple(" ".join(step["text"].split()) for step in steps),
        tuple(line for line, _ in lines),
        tuple(k for _, k in lines),
        tuple((step["start"], step["end"]) for step in steps),
    )


def _annotation(start: float, end: float | None, text: str) -> Annotation:
    return Annotation(start=start, end=end, text=" ".join(text.split()))
