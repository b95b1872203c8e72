"""One suite a module; `run_suite` is what jobs/benchmark.py calls."""

from importlib import import_module

from prospect.config.schema import Config
from prospect.errors import ConfigError


def run_suite(config: Config) -> None:
    """Runs the suite that `suite` names: `run(config)` of the module of that name in this package."""
    if config.suite is None:
        raise ConfigError("`suite` must be given, such as suite=embed.", field="suite")
    import_module(f"prospect.benchmarks.{config.suite.name}").run(config)
