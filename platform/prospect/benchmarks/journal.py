"""The results of a run in stages as a JSON file, which is whole after every row that is measured."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from prospect.files import write_json

StageResult = dict[str, Any]
Add = Callable[[StageResult], None]
Status = Literal["waiting", "running", "done", "failed"]


class Journal:
    """One run's results.

    Parent and worker write it in turn: the worker while it lives, the parent before it starts and after its end.

    Attributes:
        file: the JSON file.
        content: what it holds: what `begin_run` was given, `at`, and `stages` by name, each with `status`, `began`
            (Unix time), `seconds`, `error` and `rows`.
    """

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        self.file, self.content = file, content

    @classmethod
    def begin_run(cls, file: Path, head: dict[str, Any], stages: Iterable[str]) -> Self:
        """A run of which nothing is measured yet.

        Args:
            file: is replaced.
            head: what was measured where; `suite` has the settings, with `limits` by stage.
            stages: in the order in which they run.
        """
        waiting: dict[str, Any] = {"status": "waiting", "began": None, "seconds": None, "error": None}
        at = datetime.now(UTC).isoformat(timespec="seconds")
        journal = cls(file, {**head, "at": at, "stages": {stage: {**waiting, "rows": []} for stage in stages}})
        journal.save()
        return journal

    @classmethod
    def load(cls, file: Path) -> Self:
        return cls(file, json.loads(file.read_text()))

    def save(self) -> None:
        """Replace the file at once: a reader sees a whole one."""
        write_json(self.file, self.content)

    def stage(self, name: str) -> dict[str, Any]:
        return self.content["stages"][name]

    def limit(self, name: str) -> float:
        """Seconds that a stage may take."""
        return float(self.content["suite"]["limits"][name])

    def in_state(self, *statuses: Status) -> Sequence[Any]:
        """Names of the stages that have one of these statuses."""
        return [name for name, stage in self.content["stages"].items() if stage["status"] in statuses]

    def begin(self, name: str) -> None:
        """Start the stage's clock, unless it runs already."""
        if self.stage(name)["status"] == "waiting":
            self.stage(name).update(status="running", began=time.time())
            self.save()

    def add(self, name: str, row: StageResult) -> None:
        self.stage(name)["rows"].append(row)
        self.save()

    def end(self, name: str, error: str | None = None) -> None:
        """The stage is done, or has failed with a sentence."""
        stage = self.stage(name)
        seconds = round(time.time() - stage["began"], 2)
        stage.update(status="failed" if error else "done", seconds=seconds, error=error)
        self.save()
