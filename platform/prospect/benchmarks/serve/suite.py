"""suite=serve: what serving adds to the engine, and how long it takes to come back after a death.

The bare engine, the host without Ray and the Ray Serve application are measured with the same model, frames and
moments of speech, in one run, in stages (`prospect.benchmarks.staged`).
"""

from pathlib import Path
from typing import Any, get_args

from prospect.benchmarks.config import BenchmarkConfig
from prospect.benchmarks.journal import Journal
from prospect.benchmarks.serve import report, taken
from prospect.benchmarks.serve.settings import ServeSuite, Stage
from prospect.benchmarks.staged import watch_stages
from prospect.errors import ConfigError, ProspectError
from prospect.files import write_json
from prospect.hashing import fingerprint
from prospect.machine import describe_machine
from prospect.tracking.code_version import code_version

CONFIG = "config.json"
"""In the run's folder: what the worker is configured with."""
_RECORDED = ("vision", "model", "context", "streaming")


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure all stages, print their tables, write the raw JSON and a plot; returns what it wrote.

    Raises:
        ConfigError: another suite is configured, or the storage root is a URL.
        ProspectError: a stage failed; the other stages' results are written.
    """
    suite = config.suite
    if not isinstance(suite, ServeSuite):
        raise ConfigError("`suite` must be serve for this benchmark.", field="suite")
    if "://" in str(config.storage.root):
        raise ConfigError("`storage.root` must be a local folder for this benchmark.", field="storage.root")
    journal = measure(config, suite)
    report.plot(journal.content, journal.file.with_suffix(".png"))
    if "soak" in journal.content["stages"]:
        taken.plot(journal.content["stages"]["soak"]["rows"], journal.file.with_suffix(".soak.png"))
    print(f"\nbenchmark written to {journal.file}", flush=True)
    if failed := report.failures(journal.content):
        raise ProspectError(f"suite=serve: {len(failed)} of {len(suite.stages)} stages failed: {', '.join(failed)}.")
    return journal.content


def measure(config: BenchmarkConfig, suite: ServeSuite) -> Journal:
    """Run the stages; the file has every row as soon as it is measured."""
    folder = suite.results or Path(config.storage.root) / "benchmarks"
    code = code_version()
    commit = suite.commit or ("unknown" if code is None else code.commit + ("+" if code.diff else ""))
    head = {
        "benchmark": "serve",
        "quick": suite.quick,
        "commit": commit,
        "machine": describe_machine("cpu"),
        "suite": suite.model_dump(mode="json"),
        **{section: getattr(config, section).model_dump(mode="json") for section in _RECORDED},
    }
    kind = "serve-quick" if suite.quick else "serve"
    file = folder / f"{kind}-{commit[:8]}-{fingerprint(head['suite'])[:4]}.json"
    file.with_suffix("").mkdir(parents=True, exist_ok=True)
    write_json(file.with_suffix("") / CONFIG, config.model_dump(mode="json"))
    stages = [stage for stage in get_args(Stage) if stage in suite.stages]
    journal = Journal.begin_run(file, head, stages)
    print(report.headline(journal.content), flush=True)
    return watch_stages(
        journal, "prospect.benchmarks.serve.worker", lambda run, name: report.stage_table(run.content, name)
    )
