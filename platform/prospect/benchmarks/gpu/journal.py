"""The results of suite=gpu as a JSON file."""

from pathlib import Path
from typing import Any

from prospect.benchmarks import journal
from prospect.benchmarks.gpu.settings import GpuSuite
from prospect.streaming.settings import StreamingSettings


class Journal(journal.Journal):
    """Its content has `rehearsal`, `commit`, `machine`, `suite` and `streaming` beside the stages."""

    @classmethod
    def create(
        cls, file: Path, suite: GpuSuite, streaming: StreamingSettings, machine: dict[str, Any], commit: str
    ) -> "Journal":
        """A run of which nothing is measured yet."""
        head = {
            "benchmark": "gpu",
            "rehearsal": suite.rehearse,
            "commit": commit,
            "machine": machine,
            "suite": suite.model_dump(mode="json"),
            "streaming": streaming.model_dump(mode="json"),
        }
        stages = [stage for stage in GpuSuite.model_fields["stages"].default if stage in suite.stages]
        return cls.begin_run(file, head, stages)
