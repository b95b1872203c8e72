"""The fingerprint of an encoder: what must agree wherever embeddings meet. Builds no model and imports no torch."""

from prospect.dialogue.timeline import FPS
from prospect.hashing import fingerprint
from prospect.vision.settings import RESIZE_KERNEL, VisionSettings
from prospect.vision.weights import Weights, find_weights

_NO_PART = {"batch_size", "device", "compile", "equivalent_to"}
"""Settings that do not make another embedding."""


def encoder_fingerprint(settings: VisionSettings, weights: Weights | None = None) -> str:
    """Hash of what must agree wherever embeddings meet (docs/architecture.md#embedding-store); builds no model.

    Raises:
        CheckpointError: the weights are not to be found.
    """
    weights = weights or find_weights(settings.backend, settings.model, settings.weights)
    what = settings.model_dump(mode="json", exclude=_NO_PART | {"weights"})
    sampling = {"resize": RESIZE_KERNEL, "fps": FPS}
    return fingerprint(what | sampling | {"weights": weights.identity})
