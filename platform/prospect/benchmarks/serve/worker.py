"""The process that measures: it runs every waiting stage of a run's file, in order.

Its imports are those of every process that it starts, which import its main module: nothing heavy stands here.
"""

import logging
import os
import sys
from pathlib import Path


def main(file: Path) -> None:
    """Run the stages that `file` has waiting; the one that is marked as running comes first."""
    from prospect.benchmarks.config import BenchmarkConfig
    from prospect.benchmarks.journal import Journal
    from prospect.benchmarks.serve.bench import Bench
    from prospect.benchmarks.serve.settings import ServeSuite, Stage
    from prospect.benchmarks.serve.stages import STAGES
    from prospect.benchmarks.staged import run_stage

    folder = file.with_suffix("")
    _print_into(folder / "worker.log")
    logging.basicConfig(level=logging.ERROR)
    journal = Journal.load(file)
    config = BenchmarkConfig.model_validate_json((folder / "config.json").read_text())
    assert isinstance(config.suite, ServeSuite)
    bench = Bench(config, config.suite, folder)

    def measure(name: Stage) -> None:
        run_stage(journal, name, lambda add, _: STAGES[name](bench, add))

    try:
        for name in (*journal.in_state("running"), *journal.in_state("waiting")):
            measure(name)
    finally:
        bench.close()


def _print_into(file: Path) -> None:
    """Have this process, and all that it starts, print into a file: Ray tells at length of every process that dies."""
    with file.open("a") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
