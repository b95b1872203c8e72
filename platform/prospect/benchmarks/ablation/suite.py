"""suite=ablation: what each part of the method is worth, one factor at a time, on the sample corpus.

ROOT/benchmarks/ablation/HASH/    a storage root of its own for each corpus and encoder: corpus, embeddings, labels,
                                  runs and MLflow's database, as the usual jobs write them
ROOT/benchmarks/ablation/HASH/results/CONFIGURATION-SEED-HASH.json    scores of a finished run, written last
ROOT/benchmarks/ablation/HASH/logs/                                   what each run's latest process printed
ROOT/benchmarks/ablation.{json,md,png}                                the comparison

Starting it again continues: finished runs are read, and interrupted runs continue from their last checkpoint.
"""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from prospect.benchmarks.ablation.report import read_scores, write_report
from prospect.benchmarks.ablation.variants import AblationRun, plan_runs, shared_config
from prospect.benchmarks.config import BenchmarkConfig
from prospect.benchmarks.settings import AblationSuite
from prospect.cluster.common import ReportLine, draw_sample
from prospect.cluster.embed import embed
from prospect.cluster.label import make_labels
from prospect.cluster.runtime import disconnect
from prospect.config.schema import Config
from prospect.errors import ConfigError, ProspectError
from prospect.training.run_folder import exclusive_lock

POLL_SECONDS = 0.5
GRACE_SECONDS = 20.0
"""Time that an interrupted run gets to close its MLflow run."""


class AblationError(ProspectError):
    """Some of the runs failed."""

    code = "ablation_failed"


def run(config: BenchmarkConfig, report: ReportLine = print) -> None:
    """Run the missing configurations, and write the comparison of the finished ones.

    Raises:
        ConfigError: another suite is configured, or the suite runs in another process.
        AblationError: runs failed; the others are finished and compared.
        ProspectError: the corpus cannot be drawn, embedded or labelled.
    """
    suite = config.suite
    if not isinstance(suite, AblationSuite):
        raise ConfigError("`suite` must be ablation for this benchmark.", field="suite")
    shared = shared_config(config, suite)
    target = Path(config.storage.root) / "benchmarks" / "ablation"
    with exclusive_lock(Path(shared.storage.root)):
        prepare(shared, report)
        runs = plan_runs(config, suite)
        failures = _Pool(runs, suite.processes, report).work()
    finished = [each for each in runs if each.result.is_file()]
    if finished:
        write_report([read_scores(each.result) for each in finished], shared, suite, target, report)
    if failures:
        raise AblationError(
            f"{len(failures)} of {len(runs)} runs failed, the first: {failures[0]}; start the suite again to try them "
            "once more"
        )


def prepare(shared: Config, report: ReportLine) -> None:
    """Draw, embed and label the corpus once for all runs."""
    done = Path(shared.storage.root) / "prepared"
    if not done.is_file():
        draw_sample(shared, report)
        embed(shared, report)
        make_labels(shared, report)
        disconnect()
        done.touch()


@dataclass
class _Process:
    """A run in progress."""

    run: AblationRun
    popen: subprocess.Popen[bytes]
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, run: AblationRun) -> "_Process":
        """Start in an own session: a terminal's Ctrl-C then reaches the suite alone, which interrupts its runs."""
        run.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-u", "-m", "prospect.benchmarks.ablation.run"]
        with run.log.open("wb") as log:
            popen = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        assert popen.stdin is not None
        popen.stdin.write(pickle.dumps(run))
        popen.stdin.flush()
        return cls(run, popen)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def failure(self) -> str:
        lines = [f"status {self.popen.returncode}", *self.run.log.read_text(errors="replace").strip().splitlines()]
        reason = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[-1])
        return f"{self.run.variant.label}, seed {self.run.seed}: {reason} ({self.run.log})"

    def stop(self) -> None:
        """Wait for the interrupted run to end; end it after `GRACE_SECONDS`."""
        assert self.popen.stdin is not None
        try:
            self.popen.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.popen.stdin.close()  # which ends it at once
            self.popen.wait()


class _Pool:
    """Executes runs, a few at a time."""

    def __init__(self, runs: Sequence[AblationRun], processes: int, report: ReportLine) -> None:
        self._total, self._processes, self._report = len(runs), processes, report
        self._waiting = deque(run for run in runs if not run.result.is_file())
        self._done = len(runs) - len(self._waiting)
        self._running: list[_Process] = []
        self._seconds: list[float] = []
        self._failures: list[str] = []

    def work(self) -> list[str]:
        """Execute all runs; return one sentence for each failed run."""
        if self._done:
            self._report(f"ablation  {self._done}/{self._total} runs are finished already")
        try:
            while self._waiting or self._running:
                while self._waiting and len(self._running) < self._processes:
                    self._running.append(_Process.start(self._waiting.popleft()))
                time.sleep(POLL_SECONDS)
                for process in [each for each in self._running if each.popen.poll() is not None]:
                    self._running.remove(process)
                    self._collect(process)
        finally:
            for process in self._running:
                process.popen.send_signal(signal.SIGINT)
            for process in self._running:
                process.stop()
        return self._failures

    def _collect(self, process: _Process) -> None:
        run = process.run
        if not run.result.is_file():
            self._failures.append(process.failure())
            self._report(f"ablation  failed: {self._failures[-1]}")
            return
        self._done += 1
        self._seconds.append(process.seconds)
        metrics = read_scores(run.result).metrics
        found = ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())
        self._report(
            f"ablation  {self._done}/{self._total} {run.variant.label}, seed {run.seed}: {found}; {self._left()}"
        )

    def _left(self) -> str:
        waiting = sum(self._seconds) / len(self._seconds) * len(self._waiting)
        going = sum(max(0.0, sum(self._seconds) / len(self._seconds) - each.seconds) for each in self._running)
        return f"about {timedelta(seconds=round((waiting + going) / self._processes))} left"
