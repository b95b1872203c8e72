"""Checks of a frame's features, for the engine and for the gateway before it."""

import numpy as np

from prospect.errors import FingerprintError, SessionError, session_error


def checked_features(embedding: np.ndarray, expected: tuple[int, int]) -> np.ndarray:
    """Return a frame's features as float16, of shape `expected`, [I, D].

    Raises:
        SessionError: `wrong_shape`, or values that are not finite.
    """
    if embedding.shape != expected:
        message = f"embedding: has shape {list(embedding.shape)}, expected {list(expected)}"
        raise session_error("wrong_shape", message, "embedding")
    embedding = np.asarray(embedding, np.float16)
    if not np.isfinite(embedding).all():
        raise SessionError("embedding: holds values that are not finite", field="embedding")
    return embedding


def foreign_encoder(given: str, expected: str) -> FingerprintError:
    """Make the error for a frame of another encoder than the model's."""
    return FingerprintError(
        f"fingerprint: the frame was encoded with {given}, the model expects {expected}; "
        f"the server can declare it as good with vision.equivalent_to=[{given}]",
        field="fingerprint",
    )
