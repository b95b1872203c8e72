"""The tests that need CUDA, run by pytest in a process of their own."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from prospect.benchmarks.journal import StageResult
from prospect.errors import ProspectError

REPOSITORY = Path(__file__).resolve().parents[4]
_MARK = "@needs_cuda"


def run_cuda_tests(seconds: float) -> Iterator[StageResult]:
    """One row with the counts, then one for each test that failed, with the first line of why.

    Without `tests/conftest.py`, which imports Ray.

    Raises:
        ProspectError: pytest or the tests are missing, pytest broke off, it took longer than `seconds`, or, after the
            rows, a test failed.
    """
    files = cuda_files()
    if not files:
        raise ProspectError("tests/ is missing: run from a checkout")
    if importlib.util.find_spec("pytest") is None:
        raise ProspectError("pytest is missing: install it")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-m", "cuda", "--noconftest", "-o", "addopts="),
            *("-p", "no:cacheprovider", "-p", "no:xdist", f"--junit-xml={report}", *map(str, files)),
        ]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        try:
            done = subprocess.run(
                command, cwd=REPOSITORY, env=environment, timeout=seconds, capture_output=True, text=True
            )
        except subprocess.TimeoutExpired:
            raise ProspectError(f"pytest took longer than {seconds:.0f} s") from None
        if not report.exists():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise ProspectError(f"pytest ended with status {done.returncode}: {''.join(last)}")
        yield from _rows(report)


def cuda_files() -> list[Path]:
    """The files of tests that hold some that need CUDA."""
    return [file for file in sorted(REPOSITORY.glob("tests/**/test_*.py")) if _MARK in file.read_text()]


def _rows(report: Path) -> Iterator[StageResult]:
    suite = ElementTree.parse(report).getroot()[0]
    numbers = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    failed = numbers["failures"] + numbers["errors"]
    yield {
        "passed": numbers["tests"] - failed - numbers["skipped"],
        "failed": failed,
        "skipped": numbers["skipped"],
        "seconds": float(suite.get("time", "0")),
    }
    for case in suite.iter("testcase"):
        for why in (*case.findall("failure"), *case.findall("error")):
            yield {"test": f"{case.get('classname')}::{case.get('name')}", "why": why.get("message", "").split("\n")[0]}
    if failed:
        raise ProspectError(f"{failed} of {numbers['tests']} tests failed")
