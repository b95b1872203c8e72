"""The configuration of jobs/benchmark.py."""

from prospect.benchmarks.settings import Suite
from prospect.config.schema import Config


class BenchmarkConfig(Config):
    """The sections of the other jobs, and the suite to run."""

    suite: Suite
