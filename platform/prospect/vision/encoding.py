"""A batch of pictures to embeddings: the encoding stage of the embedding job, and how the job is spread."""

from functools import cached_property

import torch
from pydantic import Field

from prospect.errors import FingerprintError
from prospect.settings import Settings
from prospect.vision.encoder import FrameEncoder, VisionSettings, load_encoder
from prospect.vision.stages import Batch, Failure, Row, item_of, to_row


class EmbeddingSettings(Settings):
    """How the embedding job spreads over the machine or the cluster."""

    num_encoders: int | None = Field(None, ge=1)
    """Encoders at work at once; null: as many as the GPUs hold, or without GPUs one a CPU core."""
    encoder_gpus: float = Field(1.0, gt=0, le=1)
    """Share of a GPU that an encoder holds, where there are GPUs and `vision.device` is not `cpu`."""
    encoder_cpus: float = Field(0.5, gt=0)
    """CPU cores that an encoder reserves. Halves let encoders and decoders share the cores of one machine."""
    encoder_threads: int = Field(1, ge=1)
    """Threads of an encoder's arithmetic on a CPU; another number may change the last bits of an embedding."""
    decoder_cpus: float = Field(0.5, gt=0)
    """CPU cores that a decoder reserves; there are as many decoders as fit beside the encoders."""
    import_features: str | None = None
    """A folder of ProAssist's `.arrow` features to import instead of embedding videos."""


class EncodeBatch:
    """A row of pictures -> the row of their embeddings, float16; other rows pass. Loads its encoder when needed."""

    def __init__(self, settings: VisionSettings, fingerprint: str, threads: int) -> None:
        self._settings = settings
        self._fingerprint = fingerprint
        self._threads = threads

    def __call__(self, row: Row) -> Row:
        """An exception comes as a `Failure`: a worker that raises would look like one that died."""
        item, size = item_of(row), self._settings.image_size
        if not isinstance(item, Batch):
            return row
        try:
            return to_row(item, self._encoder.encode(row["values"].reshape(item.frames, size, size, 3)))
        except Exception as error:
            return to_row(Failure.of(error))

    @cached_property
    def _encoder(self) -> FrameEncoder:
        torch.set_num_threads(self._threads)
        encoder = load_encoder(self._settings)
        if encoder.fingerprint != self._fingerprint:
            raise FingerprintError(
                f"the encoder on this node has fingerprint {encoder.fingerprint}, but the job's has "
                f"{self._fingerprint}; give every node the same weights and packages"
            )
        return encoder
