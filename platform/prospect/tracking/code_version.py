"""Git version of the code behind a run."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CodeVersion:
    """Commit, branch and uncommitted changes of a checkout."""

    commit: str
    branch: str
    diff: str
    """Uncommitted changes of tracked files."""


def code_version(file: Path = Path(__file__)) -> CodeVersion | None:
    """The version of the checkout that tracks `file`, by default this package's; None outside a checkout."""
    try:
        _git(file, "ls-files", "--error-unmatch", file.name)  # an environment may lie in somebody else's checkout
        commit, branch = _git(file, "rev-parse", "HEAD"), _git(file, "rev-parse", "--abbrev-ref", "HEAD")
        return CodeVersion(commit.strip(), branch.strip(), _git(file, "diff", "HEAD"))
    except (OSError, subprocess.SubprocessError):
        return None


def _git(file: Path, *arguments: str) -> str:
    command = ["git", "-C", str(file.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=10).stdout
