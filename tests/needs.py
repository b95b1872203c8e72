"""What a test needs and a machine may lack: it skips with one line that says what to do.

PROSPECT_REQUIRE=data,chromium names what is there and must be found: a skip for want of it is then a failure.
`data-if-there` is `data` on a machine that has the folder.
"""

import os
import re
from pathlib import Path
from typing import TypeVar

import pytest
import torch

T = TypeVar("T")

ADVICE = {
    "bitsandbytes": "run make env",
    "caddy": "install caddy",
    "chromium": "install chromium",
    "cuda": "run on a machine with an NVIDIA GPU",
    "curl": "install curl",
    "docker": "install Docker with its compose plugin",
    "data": "set PROSPECT_TEST_DATA to the folder with the real videos and records",
    "nginx": "install nginx",
    "postgresql": "install postgresql",
    "root": "run as root, who may mount a small disk",
    "user": "run as a user who is not root",
    "weights": "run make weights",
}

DATA = Path(os.environ.get("PROSPECT_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
"""Real videos, dialogues and annotations."""


def required(names: str) -> frozenset[str]:
    """What PROSPECT_REQUIRE names, on this machine."""
    named = set(names.replace(",", " ").split())
    if "data-if-there" in named and DATA.is_dir():
        named.add("data")
    return frozenset(named - {"data-if-there"})


REQUIRED = required(os.environ.get("PROSPECT_REQUIRE", ""))


def reason(need: str) -> str:
    return f"needs {need}: {ADVICE[need]}"


def skip_without(need: str, found: object) -> None:
    """Skips the test, or everything that uses the fixture, unless `found`."""
    if not found:
        pytest.skip(reason(need))


def needs(need: str, found: object) -> pytest.MarkDecorator:
    """The same as a mark."""
    return pytest.mark.skipif(not found, reason=reason(need))


def need_of(report: pytest.TestReport) -> str | None:
    """What a skipped test needed; None of one that skipped for another reason."""
    told = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    found = re.search(r"needs (\w+): ", told)
    return found[1] if found else None


def needs_cuda(test: T) -> T:
    """Marks a test for `-m cuda`, which skips where there is no GPU."""
    return pytest.mark.cuda(needs("cuda", torch.cuda.is_available())(test))
