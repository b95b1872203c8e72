"""Checkpoints that any number of workers, any ZeRO stage and any backend can read.

    CHECKPOINTS/step_0000200/weights.safetensors      trainable tensors by name, float32
                             exp_avg.safetensors      AdamW's first moments, by the same names
                             exp_avg_sq.safetensors   AdamW's second moments
                             checkpoint.json          updates, progress, and size and checksum of each file

A checkpoint is written under a temporary name and renamed once all of it is on disk. It needs nothing else: clip
order, learning rates and random draws are functions of the seed, the step and the clips.
"""

import contextlib
import json
import math
import os
import shutil
import uuid
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prospect.errors import CheckpointError

WEIGHTS, MOMENTS = "weights", ("exp_avg", "exp_avg_sq")
_STATE, _PARTIAL = "checkpoint.json", ".partial"


class Checkpointable(Protocol):
    """A backend's state for checkpoints. All ranks call every method but `shapes` in the same order."""

    rank: int
    world_size: int
    updates: int
    """Optimizer updates so far, for AdamW's bias correction; setting it creates missing moments as zeros."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The trainable tensors, in an order that is the same on all ranks."""
        ...

    def get_tensor(self, kind: str, name: str) -> Tensor:
        """A whole tensor as float32 on the CPU; `kind` is `weights` or one of `MOMENTS`."""
        ...

    def set_tensor(self, kind: str, name: str, value: Tensor) -> None: ...


def write_checkpoint(
    backend: Checkpointable, folder: Path, progress: Mapping[str, Any], *, moments: bool = True
) -> OSError | None:
    """Write a checkpoint, one whole tensor in memory at a time; all ranks call it, rank 0 writes.

    Args:
        backend: its state is written.
        folder: of this checkpoint; an existing one is replaced.
        progress: JSON that `read_checkpoint` returns.
        moments: whether to write the optimizer's moments; without them training cannot be resumed.

    Returns:
        On rank 0, the error if it could not be written; no partial checkpoint remains.
    """
    shapes = backend.shapes()
    kinds = (WEIGHTS, *MOMENTS) if moments else (WEIGHTS,)
    tensors = (backend.get_tensor(kind, name) for kind in kinds for name in shapes)
    state = {"updates": backend.updates, "workers": backend.world_size, "progress": dict(progress)}
    failure = None
    if backend.rank == 0:
        try:
            _write(folder, kinds, shapes, tensors, state)
        except OSError as error:
            failure = error
    for _ in tensors:  # every rank takes part in every collective, even where rank 0 could not write
        pass
    return failure


def read_checkpoint(backend: Checkpointable, folder: Path) -> dict[str, Any]:
    """Restore `backend` from a checkpoint of any backend, and return its progress.

    Raises:
        CheckpointError: it is damaged, or belongs to another model.
    """
    if mistake := find_mismatch(backend, folder):
        raise mistake
    state = _state(folder)
    backend.updates = state["updates"]
    for file in state["files"]:
        with _opened(folder, file) as stored:
            for name in backend.shapes():
                backend.set_tensor(Path(file).stem, name, stored.get_tensor(name))
    return state["progress"]


def find_mismatch(backend: Checkpointable, folder: Path) -> CheckpointError | None:
    """The error with which restoring would fail, by file sizes and tensor shapes; quick, and without collectives."""
    if reason := _incomplete(folder):
        return CheckpointError(f"checkpoint {folder}: {reason}")
    here = backend.shapes()
    try:
        for file in _state(folder)["files"]:
            with _opened(folder, file) as stored:
                there = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
            for name in sorted(there.keys() | here.keys()):
                if there.get(name) != here.get(name):
                    said = [f"{list(shapes[name])}" if name in shapes else "missing" for shapes in (there, here)]
                    return CheckpointError(f"checkpoint {folder}: {name} is {said[0]} there and {said[1]} in the model")
    except CheckpointError as error:
        return error
    return None


@contextlib.contextmanager
def _opened(folder: Path, file: str) -> Iterator[Any]:
    try:
        with safe_open(folder / file, "pt") as stored:
            yield stored
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder}: {file} is unreadable ({error})") from error


def read_progress(folder: Path) -> dict[str, Any]:
    """The JSON in a checkpoint that `write_checkpoint` was given."""
    return cast(dict[str, Any], _state(folder)["progress"])


def write_progress(folder: Path, progress: Mapping[str, Any]) -> OSError | None:
    """Replace the progress in a checkpoint atomically, keeping its tensors; returns the error if it failed."""
    partial = folder / f"{_STATE}{_PARTIAL}"
    try:
        _write_durably(partial, [json.dumps({**_state(folder), "progress": dict(progress)}, indent=2).encode()])
        partial.replace(folder / _STATE)
        _sync(folder)
    except OSError as error:
        return error
    return None


def step_folder(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step_{step:07}"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def whole_checkpoints(checkpoints: Path) -> list[Path]:
    """The checkpoints of a run that are complete, oldest first."""
    return [folder for folder in _named(checkpoints) if _incomplete(folder) is None]


def newest_checkpoint(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint, by checksums, and a sentence for each newer, damaged one.

    Raises:
        CheckpointError: all checkpoints are damaged; only the user may decide to start over.
    """
    passed_over: list[str] = []
    for folder in reversed(_named(checkpoints)):
        reason = _incomplete(folder) or _changed(folder)
        if reason is None:
            return folder, passed_over
        passed_over.append(f"checkpoint {folder}: {reason}")
    if passed_over:
        raise CheckpointError(f"{passed_over[0]}; no undamaged checkpoint is left: delete {checkpoints} to start over")
    return None, []


def _named(checkpoints: Path) -> list[Path]:
    return [folder for folder in sorted(checkpoints.glob("step_*")) if folder.suffix != _PARTIAL]


def remove_old(checkpoints: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and partial ones of killed writers."""
    _remove(checkpoints, whole_checkpoints(checkpoints)[:-keep])


def remove_others(folder: Path, steps: Container[int]) -> None:
    """Delete the checkpoints of all steps but `steps`, and partial ones of killed writers."""
    _remove(folder, [each for each in _named(folder) if step_of(each) not in steps])


def _remove(checkpoints: Path, folders: Sequence[Path]) -> None:
    for folder in [*folders, *checkpoints.glob(f"*{_PARTIAL}")]:
        (folder / _STATE).unlink(missing_ok=True)  # first, so that a half-deleted checkpoint does not look whole
        shutil.rmtree(folder, ignore_errors=True)


def _state(folder: Path) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads((folder / _STATE).read_text()))


def _incomplete(folder: Path) -> str | None:
    """What is missing in a checkpoint, by file sizes; None where it is complete."""
    try:
        files = _state(folder)["files"]
    except (OSError, ValueError, KeyError):
        return f"{_STATE} is missing or cut off"
    for file, written in files.items():
        if not (folder / file).is_file() or (folder / file).stat().st_size != written["bytes"]:
            return f"{file} is missing or cut off"
    return None


def _changed(folder: Path) -> str | None:
    """Which file of a complete checkpoint is damaged, by checksums; None where all are as written."""
    for file, written in _state(folder)["files"].items():
        checksum = 0
        with (folder / file).open("rb") as stored:
            while part := stored.read(2**24):
                checksum = zlib.crc32(part, checksum)
        if checksum != written["crc32"]:
            return f"{file} is damaged: its checksum differs from the written one"
    return None


def _write(
    folder: Path, kinds: tuple[str, ...], shapes: dict[str, tuple[int, ...]], tensors: Iterator[Tensor], state: Any
) -> None:
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}{_PARTIAL}")
    try:
        partial.mkdir(parents=True)
        files = {}
        for kind in kinds:
            file = partial / f"{kind}.safetensors"
            checksum = _write_tensors(file, shapes, islice(tensors, len(shapes)))
            files[file.name] = {"bytes": file.stat().st_size, "crc32": checksum}
        _write_durably(partial / _STATE, [json.dumps({**state, "files": files}, indent=2).encode()])
        _sync(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        _sync(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_tensors(file: Path, shapes: dict[str, tuple[int, ...]], tensors: Iterator[Tensor]) -> int:
    """Write a safetensors file tensor by tensor; the library's own writer needs all of them in memory."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    parts = (tensor.to(torch.float32).contiguous().numpy().tobytes() for tensor in tensors)
    return _write_durably(file, chain([len(encoded).to_bytes(8, "little"), encoded], parts))


def _write_durably(file: Path, parts: Iterable[bytes]) -> int:
    """Write and fsync a file; returns its CRC-32."""
    checksum = 0
    with file.open("wb") as out:
        for part in parts:
            out.write(part)
            checksum = zlib.crc32(part, checksum)
        out.flush()
        os.fsync(out.fileno())
    return checksum


def _sync(folder: Path) -> None:
    """Fsync a folder, so that its file names survive a power failure, where the file system supports it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
