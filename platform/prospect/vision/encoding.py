"""The encoding stage of the embedding job: a batch of pictures to embeddings.

The driver only sends the stage to workers, so torch is imported when a worker first encodes.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from prospect.errors import FingerprintError
from prospect.vision.settings import VisionSettings
from prospect.vision.stages import PictureBatch, StageFailure, StageRow, item_of, to_row


class EncodeBatch:
    """Turn a row of pictures into the row of their float16 embeddings; pass other rows on."""

    def __init__(
        self, settings: VisionSettings, fingerprint: str, threads: int, device: Callable[[], str] = lambda: "auto"
    ) -> None:
        self._settings = settings
        self._fingerprint = fingerprint
        self._threads = threads
        self._device = device

    def __call__(self, row: StageRow) -> StageRow:
        """Return exceptions as a `StageFailure`: a worker that raises looks like one that died."""
        item, size = item_of(row), self._settings.image_size
        if not isinstance(item, PictureBatch):
            return row
        try:
            encode = self._encode  # imports torch
            from prospect.devices import explain_device_failure

            with explain_device_failure():
                return to_row(item, encode(row["values"].reshape(item.frames, size, size, 3)))
        except Exception as error:
            return to_row(StageFailure.of(error))

    @cached_property
    def _encode(self) -> Callable[[np.ndarray], np.ndarray]:
        import torch

        from prospect.vision.encoder import load_encoder

        torch.set_num_threads(self._threads)
        encoder = load_encoder(self._settings, self._device())
        if encoder.fingerprint != self._fingerprint:
            raise FingerprintError(
                f"the encoder on this node has fingerprint {encoder.fingerprint}, but the job has "
                f"{self._fingerprint}; give every node the same weights and packages"
            )
        return encoder.encode
