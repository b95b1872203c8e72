"""A run's folder: one process at a time may use it, and only for the configuration that began the run."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prospect.errors import ConfigError
from prospect.files import write_json
from prospect.settings import flatten


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


def require_same(folder: Path, identity: dict[str, Any]) -> None:
    """Check that a run's folder is free or was begun with this configuration.

    Raises:
        ConfigError: it was begun with another configuration.
    """
    file = folder / "identity.json"
    if not file.is_file():
        return
    there, here = flatten(json.loads(file.read_text())), flatten(json.loads(json.dumps(identity)))
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            raise ConfigError(
                f"`training.run_name` is {folder.name}, a run that was started with {key}={there.get(key)} and not "
                f"{here.get(key)}: give training.run_name another name, or delete {folder} and its checkpoints.",
                field="training.run_name",
            )


def write_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Write the configuration that identifies the run, after all checks: until then the name stays free."""
    write_json(folder / "identity.json", identity)
