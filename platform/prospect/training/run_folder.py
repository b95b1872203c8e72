"""A run's folder: the configuration that identifies the run, and a lock that lets one process at a time use it."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prospect.earlier import EARLIER_DEFAULTS, GONE
from prospect.errors import ConfigError
from prospect.files import write_json
from prospect.settings import flatten

IDENTITY_VERSION = 3
"""Of `identity.json`; 1 had no version in it and no `context.layout`, 2 no `training.clips.draws`."""


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Lock the folder until the block ends; the system unlocks it when this process dies, however it dies.

    Raises:
        ConfigError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigError(
                f"`training.run_name` is {folder.name}, a run that is active in {lock.read() or 'another process'}: "
                "wait for its end, or give training.run_name another name.",
                field="training.run_name",
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def read_identity(folder: Path) -> dict[str, Any] | None:
    """The settings of the run in `folder` by dotted name; None where no run was begun.

    A run of an earlier version has that version's defaults for the settings that came later.

    Raises:
        ConfigError: a later version wrote it.
    """
    file = folder / "identity.json"
    if not file.is_file():
        return None
    identity = json.loads(file.read_text())
    if (version := identity.pop("version", 1)) > IDENTITY_VERSION:
        raise ConfigError(
            f"`training.run_name` is {folder.name}, a run of a later version (identity {version}, this one knows "
            f"{IDENTITY_VERSION}): update prospect, or give training.run_name another name.",
            field="training.run_name",
        )
    return {**EARLIER_DEFAULTS, **{name: value for name, value in flatten(identity).items() if name not in GONE}}


def require_same(folder: Path, identity: dict[str, Any]) -> None:
    """Refuse a folder in which a run of another configuration was begun.

    Raises:
        ConfigError: naming the first setting that differs.
    """
    there = read_identity(folder)
    if there is None:
        return
    here = flatten(json.loads(json.dumps(identity)))
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            raise ConfigError(
                f"`training.run_name` is {folder.name}, a run that was started with {key}={there.get(key)} and not "
                f"{here.get(key)}: give training.run_name another name, or delete {folder} and its checkpoints.",
                field="training.run_name",
            )


def write_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Write the configuration that identifies the run, after all checks: until then the name stays free."""
    write_json(folder / "identity.json", {"version": IDENTITY_VERSION, **identity})
