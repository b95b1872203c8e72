"""A benchmark in stages, each with a limit of its own, run by a worker process that another one watches.

The worker is ended when a stage exceeds its limit; the next stages go on in a new worker. What was measured is in the
journal's file all the while.
"""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from prospect.benchmarks.journal import Add, Journal
from prospect.errors import ProspectError
from prospect.messages import first_line

J = TypeVar("J", bound=Journal)
_POLL_S = 0.1
_ENDS_WITHIN_S = 20.0
"""Seconds that a worker has after its last stage, to end what it has started."""


def watch_stages(journal: J, worker: str, table: Callable[[J, str], str]) -> J:
    """Run every waiting stage, and print its table when it has ended.

    Args:
        journal: of the run.
        worker: module that is run with the journal's file, and that runs its stages by `run_stage`.
        table: makes a stage's table.
    """
    told: set[str] = set()
    while waiting := journal.in_state("waiting"):
        journal.begin(waiting[0])
        journal = _watch(journal, worker, table, told)
    return journal


def run_stage(journal: Journal, name: str, work: Callable[[Add, float], None]) -> None:
    """Run one stage in this process.

    Args:
        journal: takes its rows and its end.
        name: of the stage.
        work: measures: is given what takes a row, and `time.perf_counter()` at which the stage is ended.
    """
    journal.begin(name)
    spent = time.time() - journal.stage(name)["began"]
    try:
        work(lambda row: journal.add(name, row), time.perf_counter() + journal.limit(name) - spent)
    except ProspectError as error:
        journal.end(name, first_line(error))
    except Exception as error:  # any: the other stages go on
        traceback.print_exc()
        journal.end(name, f"{type(error).__name__}: {first_line(error)}")
    else:
        journal.end(name)


def _watch(journal: J, module: str, table: Callable[[J, str], str], told: set[str]) -> J:
    """One worker, from its start until it ends or a stage of it exceeds its limit."""
    worker = subprocess.Popen([sys.executable, "-m", module, str(journal.file)], start_new_session=True)
    late = None
    try:
        while late is None and worker.poll() is None:
            time.sleep(_POLL_S)
            journal = _tell(journal.load(journal.file), table, told)
            late = _late(journal)
            if not journal.in_state("waiting", "running"):
                with suppress(subprocess.TimeoutExpired):  # it is killed then
                    worker.wait(_ENDS_WITHIN_S)
                break
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    journal = journal.load(journal.file)
    for name in journal.in_state("running"):
        died = f"its process ended with status {worker.returncode}"
        journal.end(name, f"ended at its limit of {journal.limit(name):g} s" if name == late else died)
    return _tell(journal, table, told)


def _late(journal: Journal) -> str | None:
    """The stage that exceeds its limit."""
    now = time.time()
    running = journal.in_state("running")
    return next((name for name in running if now - journal.stage(name)["began"] > journal.limit(name)), None)


def _tell(journal: J, table: Callable[[J, str], str], told: set[str]) -> J:
    """Print the tables of stages that have ended since."""
    for name in journal.in_state("done", "failed"):
        if name not in told:
            told.add(name)
            print(f"\n{table(journal, name)}", flush=True)
    return journal
