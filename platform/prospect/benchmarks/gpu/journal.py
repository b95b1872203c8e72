"""The results of a run as a JSON file, which is whole after every row that is measured."""

import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prospect.benchmarks.gpu.settings import GpuSuite, Stage
from prospect.files import write_json
from prospect.streaming.settings import StreamingSettings

StageResult = dict[str, Any]
Add = Callable[[StageResult], None]
Status = Literal["waiting", "running", "done", "failed"]


class Journal:
    """One run's results.

    Parent and worker write it in turn: the worker while it lives, the parent before it starts and after its end.

    Attributes:
        file: the JSON file.
        content: what it holds: `rehearsal`, `commit`, `at`, `machine`, `suite`, `streaming`, and `stages` by name,
            each with `status`, `began` (Unix time), `seconds`, `error` and `rows`.
    """

    def __init__(self, file: Path, content: dict[str, Any]) -> None:
        self.file, self.content = file, content

    @classmethod
    def create(
        cls, file: Path, suite: GpuSuite, streaming: StreamingSettings, machine: dict[str, Any], commit: str
    ) -> "Journal":
        """A run of which nothing is measured yet."""
        waiting: dict[str, Any] = {"status": "waiting", "began": None, "seconds": None, "error": None, "rows": []}
        chosen = [stage for stage in GpuSuite.model_fields["stages"].default if stage in suite.stages]
        content = {
            "benchmark": "gpu",
            "rehearsal": suite.rehearse,
            "commit": commit,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine,
            "suite": suite.model_dump(mode="json"),
            "streaming": streaming.model_dump(mode="json"),
            "stages": {stage: {**waiting, "rows": []} for stage in chosen},
        }
        journal = cls(file, content)
        journal.save()
        return journal

    @classmethod
    def load(cls, file: Path) -> "Journal":
        return cls(file, json.loads(file.read_text()))

    def save(self) -> None:
        """Replace the file at once: a reader sees a whole one."""
        write_json(self.file, self.content)

    def stage(self, name: Stage) -> dict[str, Any]:
        return self.content["stages"][name]

    def in_state(self, status: Status) -> Sequence[Stage]:
        """Names of the stages that have this status."""
        return [name for name, stage in self.content["stages"].items() if stage["status"] == status]

    def begin(self, name: Stage) -> None:
        """Start the stage's clock, unless it runs already."""
        if self.stage(name)["status"] == "waiting":
            self.stage(name).update(status="running", began=time.time())
            self.save()

    def add(self, name: Stage, row: StageResult) -> None:
        self.stage(name)["rows"].append(row)
        self.save()

    def end(self, name: Stage, error: str | None = None) -> None:
        """The stage is done, or has failed with a sentence."""
        stage = self.stage(name)
        seconds = round(time.time() - stage["began"], 2)
        stage.update(status="failed" if error else "done", seconds=seconds, error=error)
        self.save()
