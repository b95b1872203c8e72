"""Keys and values of a session outside the pool, and back: every bit as it was.

Shapes: L layers, n tokens, Hkv key heads of width Dh.
"""

import fcntl
import logging
import os
import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from prospect.errors import ConfigError, SessionError
from prospect.streaming.kv_cache.block_table import BlockTable
from prospect.streaming.kv_cache.pool import PagePool

log = logging.getLogger(__name__)

Parked = dict[str, Tensor]
"""`keys` and `values` [L, n, Hkv, Dh] in host memory, and what else the session keeps on the device."""

_PREFIX, _LOCK = "engine-", "lock"
"""Of an engine's folder; the file in it that the engine holds."""


def copy_out(pool: PagePool, table: BlockTable) -> Parked:
    """`keys` and `values` of a table's tokens."""
    rows = torch.tensor(table.slots(0, table.length), dtype=torch.long, device=pool.device)
    return {
        name: torch.stack([layer.flatten(0, 1)[rows].cpu() for layer in layers])
        for name, layers in (("keys", pool.keys), ("values", pool.values))
    }


def put_back(pool: PagePool, table: BlockTable, parked: Mapping[str, Tensor]) -> None:
    """Fills an empty table.

    Raises:
        OutOfPagesError: the pool has no room for it; the table is empty then.
        SessionError: the tensors are those of another model.
    """
    assert table.length == 0
    num_tokens = check_parked(pool, parked)
    try:
        table.reserve(num_tokens)
    except SessionError:
        table.truncate(0)
        raise
    rows = torch.tensor(table.slots(0, num_tokens), dtype=torch.long, device=pool.device)
    for name, layers in (("keys", pool.keys), ("values", pool.values)):
        for layer, held in zip(layers, parked[name], strict=True):
            layer.flatten(0, 1)[rows] = held.to(layer.device)
    table.commit(num_tokens)


def check_parked(pool: PagePool, parked: Mapping[str, Tensor]) -> int:
    """How many tokens it holds.

    Raises:
        SessionError: the tensors are those of another model.
    """
    like = pool.keys[0]
    for name in ("keys", "values"):
        held = parked.get(name)
        if held is None or held.dim() != 4 or held.dtype != like.dtype:
            raise SessionError(f"parked session: no {name} of {like.dtype} in it", field=name)
        num_tokens = parked["keys"].shape[1]
        if held.shape != (len(pool.keys), num_tokens, *like.shape[2:]):
            raise SessionError(
                f"parked session: its {name} have shape {list(held.shape)}, not this model's", field=name
            )
    return num_tokens


class ParkingLot:
    """Where parked sessions wait: in host memory, or as a safetensors file each, in a new folder within `folder`.

    Attributes:
        held: by session id, the one that was left first comes first.

    Raises:
        ConfigError: there can be no such folder.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else self._new_folder(folder)
        self.held: dict[str, Parked | Path] = {}

    def store(self, session_id: str, parked: Parked) -> None:
        """Raises SessionError where it cannot be written."""
        if self._folder is None:
            self.held[session_id] = parked
            return
        path = self._folder / f"{session_id.encode().hex()}.safetensors"
        try:
            save_file(parked, path)
        except (OSError, SafetensorError) as error:
            path.unlink(missing_ok=True)
            raise SessionError(f"session {session_id}: cannot be parked in {path.parent} ({error})") from error
        self.held[session_id] = path

    def load(self, session_id: str) -> Parked:
        """It stays parked.

        Raises:
            SessionError: its file is gone or damaged.
        """
        held = self.held[session_id]
        if not isinstance(held, Path):
            return held
        try:
            return load_file(held)
        except (OSError, SafetensorError) as error:
            raise SessionError(f"parked session {session_id}: {held} cannot be read ({error})") from error

    def _new_folder(self, parent: Path) -> Path:
        """Goes with the lot, or with the next one that is made in `parent` if this process is killed."""
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for left in parent.glob(f"{_PREFIX}*"):
                _remove_if_left(left)
            # Under the name that others look for only once it is locked.
            new = Path(mkdtemp(prefix="new-", dir=parent))
            lock = os.open(new / _LOCK, os.O_CREAT | os.O_RDWR)
            fcntl.flock(lock, fcntl.LOCK_EX)
            folder = new.rename(parent / new.name.replace("new-", _PREFIX, 1))
        except OSError as error:
            raise ConfigError(
                f"streaming.parking_folder {parent}: no folder can be made there ({error})",
                field="streaming.parking_folder",
            ) from error
        weakref.finalize(self, _remove, folder, lock)
        return folder

    def remove(self, session_id: str) -> None:
        held = self.held.pop(session_id, None)
        if isinstance(held, Path):
            held.unlink(missing_ok=True)


def _remove_if_left(folder: Path) -> None:
    """If its engine was killed: the system lets go of a lock when the process that held it dies, however it dies."""
    try:
        with (folder / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    except (BlockingIOError, FileNotFoundError):
        pass  # its engine lives, or another one removes it
    except OSError as error:
        log.warning("parking: what a killed engine left in %s cannot be removed (%s)", folder, error)


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def pack(parked: Parked) -> bytes:
    """As safetensors."""
    return save({name: tensor.contiguous() for name, tensor in parked.items()})


def unpack(data: Any) -> Parked:
    """What `pack` made.

    Raises:
        SessionError: it is not that.
    """
    try:
        return load(data)
    except (TypeError, SafetensorError) as error:
        raise SessionError(f"parked session: unreadable ({error})", field="cache") from error
