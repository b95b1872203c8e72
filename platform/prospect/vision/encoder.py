"""The frame encoder: pictures to embeddings by one frozen image tower, for recorded video and live sessions."""

import numpy as np
import torch

from prospect.devices import pick_device
from prospect.errors import ConfigError, DataError
from prospect.messages import first_line
from prospect.vision.fingerprint import encoder_fingerprint
from prospect.vision.settings import VisionSettings
from prospect.vision.tower import Tower
from prospect.vision.towers import build_tower
from prospect.vision.weights import find_weights

CPU_ROWS, CPU_ROWS_SMALL, SMALL = 4, 16, 112
"""Pictures of every forward pass on a CPU, and of pictures of up to `SMALL` pixels a side; another number would change
an embedding's last bits. Larger passes of large pictures are no faster, and few are padded to a video's last pass;
small ones are encoded 1.7 times as fast.
"""

MAX_LIVE_PIXELS = 16_000_000
"""Pixels of the largest picture that a client may send: several are unpacked at once, each up to three times over."""


def load_encoder(settings: VisionSettings, device: str = "auto") -> "FrameEncoder":
    """Find the weights, build the tower and try it on one blank picture.

    Args:
        settings: of the encoder.
        device: where it is to run: `cpu`, `cuda`, or `auto` for a GPU where there is one.

    Raises:
        CheckpointError: the weights are missing or do not fit.
        ConfigError: the model is unknown, or cannot take the picture size or the number of tokens.
    """
    weights = find_weights(settings.backend, settings.model, settings.weights)
    tower = build_tower(settings, weights)
    return FrameEncoder(settings, tower, encoder_fingerprint(settings, weights), device)


class FrameEncoder:
    """A frozen image tower with its preprocessing; get one from `load_encoder`.

    Attributes:
        dim: D.
        tokens_per_frame: I.
        fingerprint: see `encoder_fingerprint`.
    """

    def __init__(self, settings: VisionSettings, tower: Tower, fingerprint: str, device: str = "auto") -> None:
        self.settings = settings
        self.tokens_per_frame: int = settings.tokens_per_frame
        self.fingerprint = fingerprint
        self._device = pick_device(device)
        self._dtype: torch.dtype = getattr(torch, settings.dtype)
        self._tower = tower.requires_grad_(False).eval().to(self._device, self._dtype)
        self._rows = _fixed_rows(settings, self._device)
        tokens = self._tower.tokens
        self._tokens = torch.compile(tokens, dynamic=False) if settings.compile else tokens
        self._mean = torch.tensor(settings.mean, device=self._device)[:, None, None] * 255
        self._std = torch.tensor(settings.std, device=self._device)[:, None, None] * 255
        self.dim = self._try()

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 [N, S, S, 3] -> float16 [N, I, D]; on a CPU each row depends on its own picture only, to the bit.

        Raises:
            DataError: another type or shape.
        """
        size = self.settings.image_size
        if pictures.dtype != np.uint8 or pictures.shape[1:] != (size, size, 3):
            raise DataError(
                f"pictures have type {pictures.dtype} and shape {list(pictures.shape)}, "
                f"expected uint8 [N, {size}, {size}, 3]",
                field="pictures",
            )
        rows = self._rows or self.settings.batch_size
        parts = [self._encode_batch(pictures[at : at + rows]) for at in range(0, len(pictures), rows)]
        return np.concatenate([np.empty((0, self.tokens_per_frame, self.dim), np.float16), *parts])

    def decode_image(self, data: bytes) -> np.ndarray:
        """A picture as sent live -> uint8 [S, S, 3], through the resize that recorded video goes through.

        Raises:
            DataError: the bytes hold no picture, or one of more than `MAX_LIVE_PIXELS`.
        """
        from prospect.vision.pictures import decode_picture, resize_picture  # PyAV, which encoding alone does without

        return resize_picture(decode_picture(data, MAX_LIVE_PIXELS), self.settings.image_size, self.settings.crop)

    def _encode_batch(self, pictures: np.ndarray) -> np.ndarray:
        rows = len(pictures)
        if self._rows is not None and rows < self._rows:
            padded = np.zeros((self._rows, *pictures.shape[1:]), np.uint8)
            padded[:rows] = pictures
            pictures = padded
        return self._forward(torch.from_numpy(np.ascontiguousarray(pictures)))[:rows].cpu().numpy()

    @torch.inference_mode()
    def _forward(self, pictures: torch.Tensor) -> torch.Tensor:
        x = pictures.to(self._device).permute(0, 3, 1, 2).float()
        x = ((x - self._mean) / self._std).to(self._dtype)
        return self._tokens(x, self.tokens_per_frame).to(torch.float16)

    def _try(self) -> int:
        size, rows = self.settings.image_size, self._rows or 1
        try:
            return self._forward(torch.zeros(rows, size, size, 3, dtype=torch.uint8)).shape[2]
        except (RuntimeError, AssertionError) as error:
            reason = first_line(error)
            raise ConfigError(
                f"vision.image_size ({size}) does not suit vision.model {self.settings.model!r}: {reason}",
                field="vision.image_size",
            ) from error


def _fixed_rows(settings: VisionSettings, device: torch.device) -> int | None:
    """Pictures of every forward pass; None where passes may have any number of them."""
    if device.type == "cpu":
        return min(settings.batch_size, CPU_ROWS_SMALL if settings.image_size <= SMALL else CPU_ROWS)
    return settings.batch_size if settings.compile else None
