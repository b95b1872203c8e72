"""The process that measures: it runs every waiting stage of a run's file, in order, until one leaves CUDA unusable."""

import logging
import sys
from pathlib import Path

import torch

from prospect.benchmarks.gpu.bench import Bench
from prospect.benchmarks.gpu.journal import Journal
from prospect.benchmarks.gpu.settings import GpuSuite, Stage
from prospect.benchmarks.gpu.stages import STAGES
from prospect.benchmarks.journal import Add
from prospect.benchmarks.staged import run_stage
from prospect.streaming.settings import StreamingSettings


def main(file: Path) -> None:
    """Run the stages that `file` has waiting; the one that is marked as running comes first."""
    logging.basicConfig(level=logging.WARNING)
    journal = Journal.load(file)
    suite = GpuSuite(**journal.content["suite"])
    bench = Bench(suite, StreamingSettings(**journal.content["streaming"]), file.parent / "cache")
    for name in (*journal.in_state("running"), *journal.in_state("waiting")):
        if not _run(bench, journal, name):
            return


def _run(bench: Bench, journal: Journal, name: Stage) -> bool:
    """Whether this process is good for another stage."""

    def work(add: Add, ends: float) -> None:
        bench.ends = ends
        STAGES[name](bench, add)

    run_stage(journal, name, work)
    return _alive(bench)


def _alive(bench: Bench) -> bool:
    """Whether CUDA still answers: a kernel that failed leaves its process with an error for every later call."""
    if bench.suite.device == "cpu":
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]))
