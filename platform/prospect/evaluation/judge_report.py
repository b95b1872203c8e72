"""Ratings of dialogues and systems, averaged; and how they are written and shown."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from prospect.evaluation.intervals import Interval, mean_intervals
from prospect.evaluation.judge_prompt import CRITERIA, JudgeExchange
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.tally import Floats
from prospect.llm.usage import Usage


@dataclass(frozen=True)
class JudgedDialogue:
    """The ratings of one dialogue."""

    video: str
    dialogue: str
    scores: dict[str, float] | None
    """Mean over the ratings that came, by criterion; None where none came."""
    std: dict[str, float] | None
    """Standard deviation over its ratings; None for fewer than two."""
    ratings: int
    missing: tuple[str, ...]
    """Why each of the other ratings is missing."""

    @classmethod
    def of(cls, video: VideoDecisions, exchanges: Sequence[JudgeExchange]) -> "JudgedDialogue":
        found = [exchange.scores for exchange in exchanges if exchange.scores is not None]
        values = np.array([[scores[name] for name in CRITERIA] for scores in found])
        return cls(
            video=video.video,
            dialogue=video.dialogue.dialogue_id,
            scores=_named(values.mean(0)) if found else None,
            std=_named(values.std(0, ddof=1)) if len(found) > 1 else None,
            ratings=len(found),
            missing=tuple(exchange.failure for exchange in exchanges if exchange.scores is None),
        )


@dataclass(frozen=True)
class JudgedSystem:
    """The ratings of a system."""

    scores: dict[str, Interval | None]
    """Mean over its rated dialogues by criterion, with a bootstrap interval over videos."""
    std: dict[str, float | None]
    """Mean of its dialogues' standard deviations: how far the judge differs from itself."""
    asked: int
    """Dialogues that were to be rated."""
    judged: int
    """Those of them with a rating at least."""
    ratings_asked: int
    ratings: int
    dialogues: tuple[JudgedDialogue, ...]

    @classmethod
    def of(cls, dialogues: Sequence[JudgedDialogue], repetitions: int, settings: EvaluationSettings) -> "JudgedSystem":
        videos: dict[str, list[list[float]]] = defaultdict(list)
        for each in dialogues:
            if each.scores is not None:
                videos[each.video].append([each.scores[name] for name in CRITERIA])
        intervals: Sequence[Interval | None] = [None] * len(CRITERIA)
        if videos:
            rows = {video: np.array(scores) for video, scores in videos.items()}
            intervals = mean_intervals(rows, settings.bootstrap_samples, settings.seed, settings.confidence)
        spread = [each.std for each in dialogues if each.std is not None]
        return cls(
            scores=dict(zip(CRITERIA, intervals, strict=True)),
            std={name: float(np.mean([std[name] for std in spread])) if spread else None for name in CRITERIA},
            asked=len(dialogues),
            judged=sum(each.scores is not None for each in dialogues),
            ratings_asked=len(dialogues) * repetitions,
            ratings=sum(each.ratings for each in dialogues),
            dialogues=tuple(dialogues),
        )


@dataclass(frozen=True)
class JudgeReport:
    """What a judge says of systems on the same dialogues."""

    model: str
    answered_as: tuple[str, ...]
    """The models that the endpoint says it used."""
    rules: dict[str, Any]
    """What the ratings depend on, the version of the prompt among it."""
    systems: dict[str, JudgedSystem]
    without_reference: int
    """Dialogues in which the reference says nothing, which are not rated."""
    spent: Usage
    """Requests of this run."""
    cached: Usage
    """Requests of earlier runs about the same dialogues."""
    failures: dict[str, int]
    """Failed requests by kind, of this run and of earlier ones."""

    def logged(self, system: str) -> dict[str, float]:
        """A system's defined scores by stable name, for a tracker."""
        scores = self.systems[system].scores
        return {f"judge_{name}": interval.value for name, interval in scores.items() if interval is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an undefined score is null."""
        return asdict(self)

    def __rich__(self) -> Table:
        caption = "1 to 5, with confidence intervals over videos; ±: between ratings of the same dialogue"
        title = Text(f"Judged by {self.model} (prompt {self.rules['prompt']})")
        table = Table("system", title=title, caption=caption, box=box.SIMPLE_HEAD, show_edge=False)
        for column in (*CRITERIA, "dialogues"):
            table.add_column(column, justify="right")
        for name, system in self.systems.items():
            cells = [_cell(system.scores[criterion], system.std[criterion]) for criterion in CRITERIA]
            table.add_row(name, *cells, f"{system.judged} of {system.asked}")
        return table


def _named(values: Floats) -> dict[str, float]:
    return dict(zip(CRITERIA, map(float, values), strict=True))


def _cell(interval: Interval | None, std: float | None) -> str:
    """A score with its interval and the judge's own spread below it."""
    if interval is None:
        return "-"
    spread = "" if std is None else f" ±{std:.2f}"
    return f"{interval.value:.2f}{spread}\n{interval.low:.2f}-{interval.high:.2f}"
