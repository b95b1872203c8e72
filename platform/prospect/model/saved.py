"""What a model folder says of itself, read without its weights and without torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prospect.errors import CheckpointError, UntrainedHeadError

MANIFEST = "prospect.json"


@dataclass(frozen=True)
class SavedModel:
    """A folder that training wrote."""

    folder: Path
    config: dict[str, Any]
    """As `DSTProActConfig` has it."""
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Of the embeddings that the model was trained on."""
        return str(self.config.get("fingerprint", ""))

    @property
    def thresholds(self) -> dict[str, dict[str, float]] | None:
        return self.config.get("thresholds")

    def require_trained(self, *heads: str) -> None:
        """Raises UntrainedHeadError, see `require_trained`."""
        require_trained(self.folder, self.config.get("trained_steps"), *heads)


def read_saved(folder: str | Path) -> SavedModel:
    """Reads a model folder's description.

    Raises:
        CheckpointError: missing, unreadable or not one of ours.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        return SavedModel(folder, json.loads((folder / "config.json").read_text()), manifest)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"model {folder}: unreadable ({str(error).splitlines()[0]})") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """`prospect.json` of a model folder.

    Raises:
        CheckpointError: missing or unreadable.
    """
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"model {folder}: no {MANIFEST} there; give a folder that training wrote")
    try:
        return json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"model {folder}: unreadable ({str(error).splitlines()[0]})") from error


def require_trained(folder: Path, steps: Mapping[str, int] | None, *heads: str) -> None:
    """Refuses heads that never had a label.

    Raises:
        UntrainedHeadError: naming them.
    """
    untrained = [head for head in heads if not (steps or {}).get(head)]
    if untrained:
        raise UntrainedHeadError(
            f"model {folder}: {', '.join(untrained)} had no training step; train on data with such labels"
        )
