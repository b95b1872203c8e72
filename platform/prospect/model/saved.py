"""Read a model folder's config and manifest, without its weights and without torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prospect.errors import CheckpointError, UntrainedHeadError
from prospect.messages import first_line

MANIFEST = "prospect.json"


@dataclass(frozen=True)
class SavedModel:
    """Config and manifest of a model folder."""

    folder: Path
    config: dict[str, Any]
    """Fields of `DSTConfig` and of its base."""
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the embeddings that the model was trained on."""
        return str(self.config.get("fingerprint", ""))

    @property
    def thresholds(self) -> dict[str, dict[str, float]] | None:
        return self.config.get("thresholds")

    def require_trained(self, *heads: str) -> None:
        """Raise UntrainedHeadError if any of `heads` was never trained."""
        require_trained(self.folder, self.config.get("trained_steps"), *heads)


def read_saved(folder: str | Path) -> SavedModel:
    """Read a model folder's config and manifest.

    Raises:
        CheckpointError: missing, unreadable or not written by training.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        return SavedModel(folder, json.loads((folder / "config.json").read_text()), manifest)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"model {folder}: unreadable ({first_line(error)})") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """`prospect.json` of a model folder.

    Raises:
        CheckpointError: missing or unreadable.
    """
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"model {folder}: {MANIFEST} is missing; give a folder that training wrote")
    try:
        return json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"model {folder}: unreadable ({first_line(error)})") from error


def require_trained(folder: Path, steps: Mapping[str, int] | None, *heads: str) -> None:
    """Check that `heads` were trained.

    Raises:
        UntrainedHeadError: names the untrained ones.
    """
    untrained = [head for head in heads if not (steps or {}).get(head)]
    if untrained:
        raise UntrainedHeadError(
            f"model {folder}: {', '.join(untrained)} had no training step; train on data with such labels"
        )
