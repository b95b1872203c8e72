"""The process that measures: it runs every waiting stage of a run's file, in order, until one leaves CUDA unusable."""

import logging
import sys
import time
import traceback
from pathlib import Path

import torch

from prospect.benchmarks.gpu.bench import Bench
from prospect.benchmarks.gpu.journal import Journal
from prospect.benchmarks.gpu.settings import GpuSuite, Stage
from prospect.benchmarks.gpu.stages import STAGES
from prospect.errors import ProspectError
from prospect.messages import first_line
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
    journal.begin(name)
    spent = time.time() - journal.stage(name)["began"]
    bench.ends = time.perf_counter() + getattr(bench.suite.limits, name) - spent
    try:
        STAGES[name](bench, lambda row: journal.add(name, row))
    except ProspectError as error:
        journal.end(name, first_line(error))
    except Exception as error:  # any: the other stages go on
        traceback.print_exc()
        journal.end(name, f"{type(error).__name__}: {first_line(error)}")
    else:
        journal.end(name)
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
