"""suite=evaluate: the parts of an evaluation, each against a named alternative, in one run."""

from pathlib import Path
from typing import Any

from rich.console import Console

from prospect.benchmarks.config import BenchmarkConfig
from prospect.benchmarks.evaluate.settings import EvaluateSuite
from prospect.benchmarks.evaluate.streaming import measure_streaming, table
from prospect.errors import ConfigError
from prospect.files import write_json


def run(config: BenchmarkConfig) -> dict[str, Any]:
    """Print the table, write `benchmarks/evaluate.json` below the storage root, and return what it wrote.

    Raises:
        ConfigError: another suite is configured.
    """
    if not isinstance(config.suite, EvaluateSuite):
        raise ConfigError("`suite` must be evaluate for this benchmark.", field="suite")
    root = Path(config.storage.root)
    rows = measure_streaming(config.suite.streaming, config.streaming, root / "cache")
    Console(width=150).print(table(rows))
    result = {"suite": config.suite.model_dump(mode="json"), "streaming": rows}
    write_json(root / "benchmarks" / "evaluate.json", result)
    print(f"benchmark written to {root / 'benchmarks' / 'evaluate.json'}")
    return result
