"""One pass through the trunk for tokens of many sessions."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from prospect.model.interface import DSTModel
from prospect.streaming.attention.interface import ATTENTION, Backend, Chunk, RaggedStep
from prospect.streaming.kv_cache.pool import PagePool


class Trunk(Protocol):
    """Runs chunks of several sessions."""

    def __call__(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Hidden states [n, H] of each chunk; its keys and values are in its table then."""
        ...


class PackedTrunk:
    """All chunks in one forward pass, of as many tokens as they have."""

    def __init__(self, model: DSTModel, pool: PagePool, backend: Backend) -> None:
        self._model, self._pool, self._backend = model, pool, backend

    def __call__(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        lengths = [chunk.num_tokens for chunk in chunks]
        slots = [slot for chunk in chunks for slot in chunk.table.slots(chunk.past, chunk.num_tokens)]
        positions = [position for chunk in chunks for position in range(chunk.past, chunk.end)]
        step = RaggedStep(self._pool, self._tensor(slots), self._backend(self._pool, chunks))
        features = [chunk.features for chunk in chunks if chunk.features is not None]
        frames = np.concatenate(features) if features else np.empty((0, self._model.config.vision_dim), np.float16)
        hidden = self._model.trunk(
            self._tensor([token for chunk in chunks for token in chunk.ids])[None],
            torch.from_numpy(frames).to(self._pool.device),
            ATTENTION,
            position_ids=self._tensor(positions)[None],
            ragged=step,
        )[0]
        for chunk, length in zip(chunks, lengths, strict=True):
            chunk.table.commit(length)
        return list(hidden.split(lengths))

    def _tensor(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, device=self._pool.device)
