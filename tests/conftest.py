"""Shared by all tests: where the real data lies, what a machine lacks, and Ray and MLflow kept quiet and local."""

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import torch
from hypothesis import settings

from tests.needs import ADVICE, DATA, REQUIRED, need_of, reason, skip_without

# Two processes run tests at once (make test), and threads of small models wait for each other more than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")  # some tests have several nodes
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)

# A shell's background job ignores Ctrl-C, and so would every process that a test starts there to interrupt it.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.factories", "tests.order"]

# A run of the tests draws the same examples as the one before it: what a change broke shows, and nothing else does.
# `--hypothesis-profile=search` draws new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", derandomize=False, max_examples=1000, deadline=None)
settings.load_profile("same")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real videos, dialogues and annotations, kept beside the project for their licences."""
    skip_without("data", DATA.is_dir())
    return DATA


@pytest.fixture(scope="module")
def local_ray() -> None:
    """A Ray of two CPUs in this process; all modules share one, which ends with the session."""
    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _system_config={"metrics_report_interval_ms": 2000},  # tests/e2e/scraped.py waits for them
        )


pytest.register_assert_rewrite("tests.e2e.sessions")


def pytest_sessionfinish() -> None:
    ray.shutdown()


@pytest.fixture
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of `request.param`, such as 3m."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", folder], capture_output=True)
    skip_without("root", done.returncode == 0)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip for want of something that PROSPECT_REQUIRE names is a failure."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and (need := need_of(report)) in REQUIRED:
        report.outcome = "failed"
        report.longrepr = f"PROSPECT_REQUIRE names {need}, and the test skipped: {ADVICE[need]}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests skipped for want of what."""
    skipped = Counter(need_of(report) for report in terminalreporter.stats.get("skipped", []))
    for need, count in sorted(skipped.items(), key=lambda each: -each[1]):
        terminalreporter.write_line(f"skipped {count:4}: {reason(need) if need else 'for a reason of its own'}")


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
