"""One suite a folder; `run_suite` is what jobs/benchmark.py calls."""

from importlib import import_module

from prospect.config.schema import Config
from prospect.errors import ConfigError


def run_suite(config: Config) -> None:
    """Run the suite that `suite` names: `run(config)` of the module `suite` in the folder of that name."""
    if config.suite is None:
        raise ConfigError("`suite` must be given, such as suite=embed.", field="suite")
    import_module(f"prospect.benchmarks.{config.suite.name}.suite").run(config)
