"""Measure one part against named alternatives. Run: python jobs/benchmark.py suite=embed."""

from prospect.cli import run_script

if __name__ == "__main__":
    run_script("benchmark")
