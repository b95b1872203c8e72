"""Pictures sent live to embeddings, off the event loop and in batches across sessions."""

import asyncio
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from prospect.earlier import read_saved
from prospect.errors import FingerprintError
from prospect.model.checkpoint import LoadedModel
from prospect.vision.encoder import FrameEncoder, load_encoder
from prospect.vision.settings import VisionSettings

LIVE_BATCH = 4
"""On a CPU the encoder fills every batch up to this size; live pictures come one by one."""
DECODERS = 2
"""Pictures that are unpacked at once, which bounds the memory that they take."""


def encoder_of(loaded: LoadedModel, equivalent_to: Collection[str] = (), device: str = "auto") -> FrameEncoder | None:
    """The encoder that the model's embeddings came from; None where the model does not say which.

    Args:
        loaded: the model.
        equivalent_to: fingerprints declared as good as this encoder's, beside those that training was told of.
        device: where it is to run.

    Raises:
        FingerprintError: the encoder found here is another one, and not declared to be as good.
        CheckpointError: its weights are not to be found.
    """
    if loaded.manifest.get("vision") is None:
        return None
    settings = VisionSettings(**{**read_saved("vision", loaded.manifest["vision"]), "batch_size": LIVE_BATCH})
    encoder = load_encoder(settings, device)
    if loaded.fingerprint not in {encoder.fingerprint, *settings.equivalent_to, *equivalent_to}:
        raise FingerprintError(
            f"model {loaded.folder}: trained on embeddings of {loaded.fingerprint}, its encoder here "
            f"({settings.model}, {settings.weights}) is {encoder.fingerprint}; if one is as good as the other, "
            f"declare it with vision.equivalent_to=[{loaded.fingerprint}]",
            field="vision.equivalent_to",
        )
    return encoder


class LiveEncoder:
    """Encodes whatever pictures wait in one batch; one batch at a time."""

    def __init__(self, encoder: FrameEncoder) -> None:
        self._encoder = encoder
        self._thread = ThreadPoolExecutor(1, "encoder")
        self._decoders = ThreadPoolExecutor(DECODERS, "decoder")
        self._waiting: list[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = []
        self._task: asyncio.Task[None] | None = None

    async def encode(self, image: bytes) -> np.ndarray:
        """A JPEG, PNG or WebP -> float16 [I, D].

        Raises:
            DataError: the bytes hold no picture.
        """
        loop = asyncio.get_running_loop()
        picture = await loop.run_in_executor(self._decoders, self._encoder.decode_image, image)
        done: asyncio.Future[np.ndarray] = loop.create_future()
        self._waiting.append((picture, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return await done

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            pictures = np.stack([picture for picture, _ in batch])
            try:
                rows = await loop.run_in_executor(self._thread, self._encoder.encode, pictures)
            except Exception as error:  # belongs to those who wait for this batch
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
            else:
                for (_, done), row in zip(batch, rows, strict=True):
                    if not done.done():  # its caller may have given up
                        done.set_result(row)
