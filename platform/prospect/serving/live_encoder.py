"""Pictures sent live to embeddings, off the event loop and in batches across sessions."""

import asyncio
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from prospect.earlier import read_saved as read_earlier
from prospect.errors import FingerprintError
from prospect.model.checkpoint import LoadedModel
from prospect.model.saved import SavedModel
from prospect.monitoring import Readings
from prospect.serving.engine_view import note_gpu
from prospect.serving.replay import Json, pack
from prospect.serving.wire import Connection, listen
from prospect.vision.encoder import FrameEncoder, load_encoder
from prospect.vision.settings import VisionSettings

Encoded = SavedModel | LoadedModel
LIVE_BATCH = 4
"""On a CPU the encoder fills every batch up to this size; live pictures come one by one."""
DECODERS = 2
"""Pictures that are unpacked at once, which bounds the memory that they take."""


def encoder_of(model: Encoded, equivalent_to: Collection[str] = (), device: str = "auto") -> FrameEncoder | None:
    """The encoder that a model's embeddings came from; None where the model does not say which.

    Args:
        model: loaded, or its folder's config and manifest.
        equivalent_to: fingerprints declared as good as this encoder's, beside those that training was told of.
        device: where it is to run.

    Raises:
        FingerprintError: the encoder found here is another one, and not declared to be as good.
        CheckpointError: its weights are not to be found.
    """
    if model.manifest.get("vision") is None:
        return None
    settings = VisionSettings(**{**read_earlier("vision", model.manifest["vision"]), "batch_size": LIVE_BATCH})
    encoder = load_encoder(settings, device)
    if model.fingerprint not in {encoder.fingerprint, *settings.equivalent_to, *equivalent_to}:
        raise FingerprintError(
            f"model {model.folder}: trained on embeddings of {model.fingerprint}, its encoder here "
            f"({settings.model}, {settings.weights}) is {encoder.fingerprint}; if one is as good as the other, "
            f"declare it with vision.equivalent_to=[{model.fingerprint}]",
            field="vision.equivalent_to",
        )
    return encoder


class LiveEncoder:
    """Encodes whatever pictures wait in one batch; one batch at a time.

    Attributes:
        readings: for operators.
    """

    def __init__(self, encoder: FrameEncoder) -> None:
        self._encoder, self.readings = encoder, Readings()
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

    async def count(self) -> int:
        return 1

    async def measure(self) -> None:
        """Note in the readings how the encoder is now."""
        self.readings.set("prospect_pictures_waiting", len(self._waiting))
        note_gpu(self.readings)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            pictures, began = np.stack([picture for picture, _ in batch]), time.monotonic()
            try:
                rows = await loop.run_in_executor(self._thread, self._encoder.encode, pictures)
            except Exception as error:  # belongs to those who wait for this batch
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
            else:
                self.readings.count("prospect_pictures_encoded_total", by=len(batch))
                self.readings.observe("prospect_encode_seconds", time.monotonic() - began)
                for (_, done), row in zip(batch, rows, strict=True):
                    if not done.done():  # its caller may have given up
                        done.set_result(row)


class EncoderWorker:
    """Answers gateways that have pictures to encode."""

    def __init__(self, encoder: LiveEncoder) -> None:
        self._encoder = encoder

    async def start(self, host: str, secret: str) -> str:
        """Begin to listen on a node's address; returns "host:port"."""
        self._server, address = await listen(host, secret, lambda: self)
        return address

    async def answer(self, connection: Connection, operation: str, arguments: list[Any]) -> Json:
        """Encode a picture; raises DataError where the bytes hold none."""
        assert operation == "encode"
        return pack([await self._encoder.encode(*arguments)])

    def notice(self, connection: Connection, operation: str, arguments: list[Any]) -> None:
        """Ignore: gateways only ask."""

    def lost(self, connection: Connection) -> None:
        """Ignore: pictures belong to no connection."""
