"""Where things come from: stable hashes of settings and files. The bottom layer; imports nothing of ours."""

import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, so that equal settings hash equally."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(settings: Any) -> str:
    """16 hex digits that change when any of `settings` (JSON-serialisable) changes."""
    return hashlib.sha256(canonical_json(settings).encode()).hexdigest()[:16]


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes in hex; reads in blocks, so size does not matter.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def derived_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else (Python's `hash` is salted)."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class CodeVersion:
    """What a checkout held."""

    commit: str
    branch: str
    diff: str
    """Changes of tracked files that no commit has; empty where there are none."""


def code_version(file: Path = Path(__file__)) -> CodeVersion | None:
    """The version of the checkout that tracks `file`, by default this package's; None where none does."""
    try:
        _git(file, "ls-files", "--error-unmatch", file.name)  # an environment may lie in somebody else's checkout
        commit, branch = _git(file, "rev-parse", "HEAD"), _git(file, "rev-parse", "--abbrev-ref", "HEAD")
        return CodeVersion(commit.strip(), branch.strip(), _git(file, "diff", "HEAD"))
    except (OSError, subprocess.SubprocessError):
        return None


def _git(file: Path, *arguments: str) -> str:
    command = ["git", "-C", str(file.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=10).stdout
