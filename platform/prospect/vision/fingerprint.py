"""The fingerprint of an encoder, computed without torch and without building the model."""

from prospect.dialogue.timeline import FPS
from prospect.hashing import fingerprint
from prospect.vision.settings import RESIZE_KERNEL, VisionSettings
from prospect.vision.weights import Weights, find_weights

_EXCLUDED = {"batch_size", "compile", "equivalent_to"}
"""Settings that do not change an embedding."""
_OF_SMOLVLM = {"pooling", "connector"}
"""Settings that change only SmolVLM2's."""


def encoder_fingerprint(settings: VisionSettings, weights: Weights | None = None) -> str:
    """Hash everything that changes an embedding (docs/architecture.md#embedding-store).

    Raises:
        CheckpointError: the weights are missing.
    """
    weights = weights or find_weights(settings.backend, settings.model, settings.weights)
    foreign = set() if settings.backend == "smolvlm" else _OF_SMOLVLM
    what = settings.model_dump(mode="json", exclude=_EXCLUDED | foreign | {"weights"})
    sampling = {"resize": RESIZE_KERNEL, "fps": FPS}
    return fingerprint(what | sampling | {"weights": weights.identity})
