"""One suite a folder; `run_suite` is what jobs/benchmark.py calls."""

from importlib import import_module

from prospect.benchmarks.config import BenchmarkConfig


def run_suite(config: BenchmarkConfig) -> None:
    """Run the suite that `suite` names: `run(config)` of the module `suite` in the folder of that name."""
    import_module(f"prospect.benchmarks.{config.suite.name}.suite").run(config)
