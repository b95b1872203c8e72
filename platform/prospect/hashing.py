"""Stable hashes of settings and files, and seeds that follow from names. The bottom layer; imports nothing of ours."""

import hashlib
import json
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
