"""suite=gpu: every claim about a GPU on one card, in stages of less than six minutes together.

The stages run in a worker process, which this one ends when a stage exceeds its limit; the next stages go on in a
new worker. A bare machine needs torch, transformers, peft, timm, open_clip, pydantic and hydra-core.
"""

from pathlib import Path
from typing import Any

from prospect.benchmarks.config import BenchmarkConfig
from prospect.benchmarks.gpu.journal import Journal
from prospect.benchmarks.gpu.machine import commit_of, describe, require_gpu
from prospect.benchmarks.gpu.report import failures, headline, stage_table, to_markdown
from prospect.benchmarks.gpu.settings import GpuSuite
from prospect.benchmarks.staged import watch_stages
from prospect.errors import ConfigError, ProspectError
from prospect.hashing import fingerprint
from prospect.streaming.settings import StreamingSettings


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure all stages, print their tables and write the raw JSON; returns what it wrote.

    Raises:
        ConfigError: another suite is configured, or this machine has no GPU that can run it.
        ProspectError: a stage failed; the other stages' results are written.
    """
    suite = config.suite
    if not isinstance(suite, GpuSuite):
        raise ConfigError("`suite` must be gpu for this benchmark.", field="suite")
    folder = suite.results or Path(config.storage.root) / "benchmarks"
    journal = measure(suite, config.streaming, folder)
    print(f"\n{to_markdown(journal.content)}\n\nbenchmark written to {journal.file}", flush=True)
    if failed := failures(journal.content):
        raise ProspectError(f"suite=gpu: {len(failed)} of {len(suite.stages)} stages failed: {', '.join(failed)}.")
    return journal.content


def measure(suite: GpuSuite, streaming: StreamingSettings, folder: Path) -> Journal:
    """Run the stages; the file below `folder` has every row as soon as it is measured.

    Raises:
        ConfigError: this machine has no GPU that can run them.
    """
    if not suite.rehearse:
        require_gpu()
    machine, commit = describe(suite), commit_of(suite)
    journal = Journal.create(folder / _file_name(machine, commit, suite), suite, streaming, machine, commit)
    print(headline(journal.content), flush=True)
    return watch_stages(journal, "prospect.benchmarks.gpu.worker", lambda run, name: stage_table(run.content, name))


def _file_name(machine: dict[str, Any], commit: str, suite: GpuSuite) -> str:
    card = "".join(letter if letter.isalnum() else "-" for letter in machine["device"].lower())
    kind = "gpu-rehearsal" if suite.rehearse else f"gpu-{card}"
    return f"{kind}-{commit[:8]}-{fingerprint(suite.model_dump(mode='json'))[:4]}.json"
