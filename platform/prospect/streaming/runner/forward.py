"""One forward pass for tokens of many sessions: through the trunk, then through the heads at decided frames."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from prospect.model.interface import DSTModel
from prospect.streaming.attention.interface import ATTENTION, AttentionBackend, Chunk, RaggedStep
from prospect.streaming.kv_cache.pool import PagePool
from prospect.streaming.runner.requests import Reading


class Trunk(Protocol):
    """A forward pass through the trunk for chunks of several sessions."""

    @property
    def attention(self) -> str:
        """Name of the class that computes attention."""
        ...

    def __call__(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Return hidden states [n, H] of each chunk, and commit its keys and values to its table."""
        ...


class PackedTrunk:
    """Packs all chunks into one forward pass without padding."""

    def __init__(self, model: DSTModel, pool: PagePool, backend: AttentionBackend) -> None:
        self._model, self._pool, self._backend = model, pool, backend
        self.attention = backend.__name__

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


Request = tuple[Tensor, Tensor | None]
"""Hidden states [m, H] of one session's frames, and the step vectors [K, W] of its recipe."""


def read_heads(model: DSTModel, requests: Sequence[Request]) -> list[tuple[Reading, ...]]:
    """Read the heads once for all frames; return one reading for each frame of each request."""
    counts = [len(hidden) for hidden, _ in requests]
    if not sum(counts):
        return [()] * len(requests)
    hidden = torch.cat([hidden for hidden, _ in requests])
    scores = torch.stack(model.decision_probabilities(hidden), 1).tolist()
    states = iter(_read_states(model, hidden.split(counts), [vectors for _, vectors in requests]))
    readings = iter([Reading(speak, update, next(states)) for speak, update in scores])
    return [tuple(next(readings) for _ in range(count)) for count in counts]


def _read_states(model: DSTModel, hidden: Sequence[Tensor], vectors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return the state head's logits [K, 3] for each frame whose request has step vectors, else None."""
    pairs = [(frames, steps) for frames, steps in zip(hidden, vectors, strict=True) if steps is not None]
    if not pairs:
        return [None] * sum(map(len, hidden))
    head = model.dst_state_head
    frames = head.frame_vectors(torch.cat([frames for frames, _ in pairs]))
    steps = [vectors for frames, vectors in pairs for _ in range(len(frames))]
    sizes = [len(vectors) for vectors in steps]
    repeats = torch.tensor(sizes, device=frames.device)
    logits = iter(head.compare(frames.repeat_interleave(repeats, 0), torch.cat(steps)).cpu().split(sizes))
    return [
        next(logits) if steps is not None else None
        for frames, steps in zip(hidden, vectors, strict=True)
        for _ in range(len(frames))
    ]
