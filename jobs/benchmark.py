"""Measure one part against named alternatives. Run: python jobs/benchmark.py suite=embed."""

from prospect.benchmarks.suites import run_suite
from prospect.config.cli import run_job

if __name__ == "__main__":
    run_job("benchmark", run_suite)
