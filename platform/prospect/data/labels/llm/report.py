"""The report on mapping by a language model: one result a video, and the cost."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from prospect.llm.usage import Usage

Outcome = Literal["mapped", "quarantine", "aligner"]


@dataclass(frozen=True)
class MappingResult:
    """One video's mapping, or the reason for its lack."""

    video: str
    outcome: Outcome
    """`mapped`, or `LLMSettings.on_failure`."""
    assignment: tuple[int, ...] | None = None
    """Step index (from 0) of each block, non-decreasing, every step at least once."""
    reason: str = ""
    """Why the mapping is missing, in one sentence."""
    key: str = ""
    """Name of the conversation in the cache, `<root>/labels/llm/<key>.json`; empty if no model was asked."""
    attempts: int = 0
    """Requests about this video, those of earlier runs included."""
    cached: bool = False
    """Whether this run sent no request for it."""


@dataclass(frozen=True)
class MappingReport:
    """The outcome of `map_videos`."""

    model: str
    results: tuple[MappingResult, ...]
    """In the order of the requests."""
    spent: Usage
    """Requests of this run."""
    cached: Usage
    """Requests of earlier runs about the same videos, from the cache."""
    failures: dict[str, int] = field(default_factory=dict)
    """Failed requests by kind, of this run and of earlier ones."""

    def to_dict(self) -> dict[str, Any]:
        """Counts and totals without the single results, for JSON and for tracking."""
        outcomes = Counter(result.outcome for result in self.results)
        return {
            "model": self.model,
            "videos": len(self.results),
            "mapped": outcomes["mapped"],
            "failed": len(self.results) - outcomes["mapped"],
            "videos_from_cache": sum(result.cached for result in self.results),
            "spent": asdict(self.spent),
            "cached": asdict(self.cached),
            "failures": dict(self.failures),
        }

    def to_json(self) -> str:
        """All of it, results included."""
        results = [asdict(result) for result in self.results]
        return json.dumps({**self.to_dict(), "results": results}, indent=1, ensure_ascii=False)

    def __rich__(self) -> Table:
        total = self.to_dict()
        title = f"LLM mapping by {self.model}: {total['mapped']:,} of {total['videos']:,} videos"
        table = Table("", title=Text(title))
        for column in ("requests", "input tokens", "output tokens", "cost"):
            table.add_column(column, justify="right")
        for name, usage in (("this run", self.spent), ("earlier runs", self.cached)):
            table.add_row(
                name, f"{usage.requests:,}", f"{usage.input_tokens:,}", f"{usage.output_tokens:,}", usage.price
            )
        if self.failures:
            table.caption = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.failures.items()))
        return table
