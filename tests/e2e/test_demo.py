"""`jobs/demo.py` as a newcomer meets it: run to the end, interrupted, run again."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from scripts.cluster import free_port
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.e2e

SMALL = [
    "corpus.num_train=8", "corpus.num_validation=1", "corpus.num_test=2", "training.max_steps=8",
    "training.warmup_steps=4", "training.num_workers=1", "training.threads_per_worker=1", "embedding.num_encoders=1",
    "context.max_utterance_tokens=12",
]  # fmt: skip
MARK = "PROSPECT_TEST_MARK"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def start(root: Path, mark: str, overrides: Sequence[str]) -> subprocess.Popen[str]:
    """The demo in a process group of its own, as a shell starts it in the foreground."""
    command = [sys.executable, "-u", "jobs/demo.py", f"storage.root={root}", f"serving.port={free_port()}"]
    return subprocess.Popen(
        [*command, *SMALL, *overrides], cwd=REPOSITORY, env={**os.environ, MARK: mark}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def left_over(mark: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()) or process.name())
        except psutil.Error:
            continue
    return found


@dataclass
class Ended:
    """A demo that ran to its end."""

    printed: str
    processes: list[str]
    """What is left of it."""


@pytest.fixture(scope="module")
def finished(root: Path) -> Ended:
    """The first demo below `root`."""
    mark = uuid.uuid4().hex
    printed = start(root, mark, []).communicate(timeout=400)[0]
    return Ended(printed, left_over(mark))


def test_the_demo_runs_to_its_end(finished: Ended) -> None:
    assert_whole(finished.printed)
    for phase in ("train  step", "train  starting 1 worker", "train  calibrating thresholds", "groups of up to"):
        assert phase in finished.printed
    assert finished.processes == []


@pytest.mark.parametrize(
    "moment",
    [pytest.param("draw   ", marks=pytest.mark.long), pytest.param("embed  ", marks=pytest.mark.long), "train  step"],
)
def test_ctrl_c_leaves_no_process_behind(moment: str, root: Path) -> None:
    """In the whole file the finished demo has drawn and embedded already, so that `train` comes soon."""
    mark = uuid.uuid4().hex
    if moment != "train  step":
        root = root / moment.strip()
    # Long enough that the moment is not over when the signal arrives.
    longer = ["training.max_steps=5000", "training.run_name=interrupted", "training.log_every=1"]
    longer += ["corpus.num_train=300"] if moment == "draw   " else []
    process = start(root, mark, longer)
    assert process.stdout is not None
    try:
        printed = []
        for line in process.stdout:
            printed.append(line)
            if line.startswith(moment):
                os.killpg(process.pid, signal.SIGINT)
                break
        rest, _ = process.communicate(timeout=90)
        assert process.returncode == 130, "".join(printed) + rest
        assert "Traceback" not in rest
        deadline = time.monotonic() + 20
        while left_over(mark) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert left_over(mark) == []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.long
def test_what_is_finished_is_reused(root: Path, finished: Ended) -> None:
    """In make test: tests/test_earlier.py for a finished run, tests/vision for a finished store."""
    printed = start(root, uuid.uuid4().hex, []).communicate(timeout=400)[0]
    assert_whole(printed)
    for phase in ("groups of up to", "train  step"):
        assert phase not in printed
    assert "run 'default' is finished" in printed


def assert_whole(printed: str) -> None:
    """Everything that a demo shows until its end."""
    assert "assistant:" in printed or "user:" in printed
    assert "trained model" in printed
    assert "The demo took" in printed, printed[-3000:]
    assert "mlflow ui --backend-store-uri sqlite:////" in printed
