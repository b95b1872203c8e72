"""Parking: copies of sessions' keys and values outside the pool, in host memory or on disk, bit for bit.

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
"""`keys` and `values` [L, n, Hkv, Dh] in host memory, and other tensors of the session by name."""

_PREFIX, _LOCK = "engine-", "lock"
"""Prefix of an engine's folder, and the file in it that the engine keeps locked."""


def copy_out(pool: PagePool, table: BlockTable) -> Parked:
    """Copy the keys and values of a table's tokens to host memory."""
    slots = torch.tensor(table.slots(0, table.length), dtype=torch.long, device=pool.device)
    return {
        name: torch.stack([layer.flatten(0, 1)[slots].cpu() for layer in layers])
        for name, layers in (("keys", pool.keys), ("values", pool.values))
    }


def put_back(pool: PagePool, table: BlockTable, parked: Mapping[str, Tensor]) -> None:
    """Fill an empty table with parked keys and values.

    Raises:
        OutOfPagesError: the pool has too few pages; the table stays empty.
        SessionError: the tensors belong to another model.
    """
    assert table.length == 0
    num_tokens = check_parked(pool, parked)
    try:
        table.reserve(num_tokens)
    except SessionError:
        table.truncate(0)
        raise
    slots = torch.tensor(table.slots(0, num_tokens), dtype=torch.long, device=pool.device)
    for name, layers in (("keys", pool.keys), ("values", pool.values)):
        for layer, held in zip(layers, parked[name], strict=True):
            layer.flatten(0, 1)[slots] = held.to(layer.device)
    table.commit(num_tokens)


def check_parked(pool: PagePool, parked: Mapping[str, Tensor]) -> int:
    """Return how many tokens `parked` holds.

    Raises:
        SessionError: the tensors belong to another model.
    """
    like = pool.keys[0]
    for name in ("keys", "values"):
        held = parked.get(name)
        if held is None or held.dim() != 4 or held.dtype != like.dtype:
            raise SessionError(f"parked session: {name} in {like.dtype} are missing", field=name)
        num_tokens = parked["keys"].shape[1]
        if held.shape != (len(pool.keys), num_tokens, *like.shape[2:]):
            raise SessionError(
                f"parked session: {name} have shape {list(held.shape)}, which this model does not have", field=name
            )
    return num_tokens


class ParkingLot:
    """Holds parked sessions in host memory or, given `folder`, as one safetensors file each in a new subfolder.

    Attributes:
        held: tensors or file by session id, in the order in which they were stored.

    Raises:
        ConfigError: the subfolder cannot be made.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else self._new_folder(folder)
        self.held: dict[str, Parked | Path] = {}

    def store(self, session_id: str, parked: Parked) -> None:
        """Hold a session's tensors.

        Raises:
            SessionError: the file cannot be written.
        """
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
        """Return a session's tensors; it stays parked.

        Raises:
            SessionError: its file is missing or damaged.
        """
        held = self.held[session_id]
        if not isinstance(held, Path):
            return held
        try:
            return load_file(held)
        except (OSError, SafetensorError) as error:
            raise SessionError(f"parked session {session_id}: {held} cannot be read ({error})") from error

    def _new_folder(self, parent: Path) -> Path:
        """Make a locked subfolder, which is removed with this object, or by the next engine if this one is killed."""
        try:
            parent.mkdir(parents=True, exist_ok=True)
            for left in parent.glob(f"{_PREFIX}*"):
                _remove_if_left(left)
            # It gets the name that other engines look for only once it is locked.
            new = Path(mkdtemp(prefix="new-", dir=parent))
            lock = os.open(new / _LOCK, os.O_CREAT | os.O_RDWR)
            fcntl.flock(lock, fcntl.LOCK_EX)
            folder = new.rename(parent / new.name.replace("new-", _PREFIX, 1))
        except OSError as error:
            raise ConfigError(
                f"`streaming.parking_folder` ({parent}) must be a folder that can be written to ({error}).",
                field="streaming.parking_folder",
            ) from error
        weakref.finalize(self, _remove, folder, lock)
        return folder

    def remove(self, session_id: str) -> None:
        held = self.held.pop(session_id, None)
        if isinstance(held, Path):
            held.unlink(missing_ok=True)


def _remove_if_left(folder: Path) -> None:
    """Remove the folder of a killed engine: the operating system releases a lock when its process dies."""
    try:
        with (folder / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    except (BlockingIOError, FileNotFoundError):
        pass  # its engine lives, or another engine removes it
    except OSError as error:
        log.warning("parking: cannot remove %s, which a killed engine left behind (%s)", folder, error)


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def pack(parked: Parked) -> bytes:
    """Serialise parked tensors as safetensors."""
    return save({name: tensor.contiguous() for name, tensor in parked.items()})


def unpack(data: Any) -> Parked:
    """Read what `pack` wrote.

    Raises:
        SessionError: the bytes are not safetensors.
    """
    try:
        return load(data)
    except (TypeError, SafetensorError) as error:
        raise SessionError(f"parked session: unreadable ({error})", field="cache") from error
