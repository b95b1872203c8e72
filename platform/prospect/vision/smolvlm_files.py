"""Files of SmolVLM2 that its tower and connector are read from. Imports no torch."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prospect.errors import CheckpointError
from prospect.messages import first_line

SMOLVLM_TINY = "smolvlm-tiny"
"""A tower of two layers and its connector, with random weights."""


def smolvlm_folder(model: str, spec: str) -> Path | None:
    """The folder of SmolVLM2's configuration and weights, from the hub if `spec` is `hub`; None for random weights.

    Raises:
        CheckpointError: it is missing, or cannot be fetched.
    """
    if spec.startswith("random:"):
        return None
    if spec == "hub":
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(model, allow_patterns=["config.json", "*.safetensors"]))
        except (HfHubHTTPError, LocalEntryNotFoundError, HTTPError, OSError, ValueError) as error:
            raise CheckpointError(
                f"vision.weights (hub) of {model} are missing on this machine and cannot be fetched: set "
                "vision.weights to a folder with its config.json and safetensors files.",
                field="vision.weights",
            ) from error
    folder = Path(spec).expanduser()
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"vision.weights ({spec}) must be `hub`, or a folder with config.json and safetensors files of SmolVLM2.",
            field="vision.weights",
        )
    return folder


def tower_files(folder: Path) -> list[Path]:
    """The safetensors files of a SmolVLM2 that hold its tower and connector.

    Raises:
        CheckpointError: there are none.
    """
    files = [file for file in sorted(folder.glob("*.safetensors")) if tower_parts(_header(file)[1])]
    if not files:
        raise CheckpointError(
            f"vision.weights ({folder}) have no vision tower: give a folder of SmolVLM2 with all its weights.",
            field="vision.weights",
        )
    return files


def tower_parts(names: Iterable[str]) -> dict[str, str]:
    """Names of the tensors of SmolVLM2's tower and connector, without `model.`, by their names in a file."""
    shorts = {name: name.removeprefix("model.") for name in names}
    return {name: short for name, short in shorts.items() if short.startswith(("vision_model.", "connector."))}


def hash_tower(folder: Path) -> str:
    """Hash the tower's tensors, so that neither other weights nor the way in which they are cut into files count."""
    hashes = {}
    for file in tower_files(folder):
        begin, tensors = _header(file)
        with file.open("rb") as content:
            for name, short in tower_parts(tensors).items():
                first, end = tensors[name]["data_offsets"]
                content.seek(begin + first)
                described = f"{tensors[name]['dtype']}{tensors[name]['shape']}".encode()
                hashes[short] = hashlib.sha256(described + content.read(end - first)).hexdigest()
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors of a safetensors file begin, and their descriptions by name.

    Raises:
        CheckpointError: the file is cut short or something else.
    """
    try:
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            described = json.loads(content.read(length if length < 2**27 else 0))
            return 8 + length, {name: each for name, each in described.items() if name != "__metadata__"}
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"vision.weights ({file}) cannot be read as safetensors: {first_line(error)}", field="vision.weights"
        ) from error
