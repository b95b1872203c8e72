"""Fixed-shape forward passes for CUDA graphs and deterministic mode: R single-token rows, padded.

Shapes: R rows, D features of an image token, W pages of a full session; others as in
`prospect.streaming.attention.interface`.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from prospect.model.interface import DSTModel
from prospect.streaming.attention.interface import ATTENTION, Attend, Chunk, RaggedStep
from prospect.streaming.kv_cache.pool import PagePool


class StaticBuffers:
    """Static buffers: the inputs of R tokens, at addresses that do not change.

    A row without a token is padding: it writes to the pool's last page and attends to that page's first key.

    Attributes:
        tokens: [R].
        frames: [R, D] features of image tokens; zeros for other tokens.
        positions: [R] of each token in its session.
        slots: [R] where keys and values go, in the pool's slots.
        tables: [R, W] pages of each token's session.
    """

    def __init__(self, pool: PagePool, num_rows: int, num_keys: int, vision_dim: int) -> None:
        def empty(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=pool.device)

        self._pool = pool
        self.tokens, self.positions, self.slots = empty(num_rows), empty(num_rows), empty(num_rows)
        self.frames = empty(num_rows, vision_dim, dtype=torch.float16)
        self.tables = empty(num_rows, pool.pages_for(num_keys), dtype=torch.int32)
        self.fill([])

    def __len__(self) -> int:
        return len(self.tokens)

    def fill(self, chunks: Sequence[Chunk], image: int | None = None) -> None:
        """Write the chunks' tokens into the buffers one after the other; `image` is the id of an image token."""
        padding = self._pool.num_pages
        tokens, positions = np.zeros(len(self), np.int64), np.zeros(len(self), np.int64)
        slots = np.full(len(self), padding * self._pool.page_size)
        tables = np.full(tuple(self.tables.shape), padding, np.int32)
        frames = np.zeros(tuple(self.frames.shape), np.float16)
        start = 0
        for chunk in chunks:
            rows, past = slice(start, start + chunk.num_tokens), chunk.table.length
            tokens[rows], positions[rows] = chunk.ids, np.arange(past, past + chunk.num_tokens)
            slots[rows] = chunk.table.slots(past, chunk.num_tokens)
            tables[rows, : len(chunk.table.pages)] = chunk.table.pages
            if chunk.features is not None:
                frames[start + np.flatnonzero(tokens[rows] == image)] = chunk.features
            start = rows.stop
        here = self.tokens, self.positions, self.slots, self.tables, self.frames
        for tensor, values in zip(here, (tokens, positions, slots, tables, frames), strict=True):
            tensor.copy_(torch.from_numpy(values))


StaticAttention = Callable[[PagePool, StaticBuffers], Attend]
"""Makes a pass's attention from the buffers as they are filled."""


class StaticPass:
    """A forward pass through the trunk over `StaticBuffers`: calls differ in their content only.

    Args:
        model: whose trunk runs.
        pool: of pages.
        num_rows: R.
        num_keys: of a full session.
        attention: of each row over its session's keys.
    """

    def __init__(
        self,
        model: DSTModel,
        pool: PagePool,
        num_rows: int,
        num_keys: int,
        attention: StaticAttention,
    ) -> None:
        self._model, self._pool, self._attention = model, pool, attention
        self._image = (model.config.grammar_ids or {})["<image>"]
        self._buffers = StaticBuffers(pool, num_rows, num_keys, model.config.vision_dim)

    @property
    def num_rows(self) -> int:
        return len(self._buffers)

    def __call__(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Return hidden states [n, H] of each chunk and commit it to its table; all have R tokens together at most."""
        lengths = [chunk.num_tokens for chunk in chunks]
        self._buffers.fill(chunks, self._image)
        hidden = self._hidden()[: sum(lengths)]
        for chunk, length in zip(chunks, lengths, strict=True):
            chunk.table.commit(length)
        return list(hidden.split(lengths))

    def _hidden(self) -> Tensor:
        """Run the trunk; return [R, H]."""
        buffers, model = self._buffers, self._model
        embeddings = model.embed(buffers.tokens, buffers.frames, aligned=True)
        step = RaggedStep(self._pool, buffers.slots, self._attention(self._pool, buffers))
        return model.hidden_states(embeddings[None], ATTENTION, position_ids=buffers.positions[None], ragged=step)[0]


class DeterministicTrunk:
    """Runs every pass in one fixed shape: a token's result does not depend on its company (batch invariance)."""

    def __init__(self, model: DSTModel, pool: PagePool, num_rows: int, num_keys: int) -> None:
        self._pass = StaticPass(model, pool, num_rows, num_keys, FixedAttention)
        self.attention = FixedAttention.__name__
        self._image = (model.config.grammar_ids or {})["<image>"]

    def __call__(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        hidden: list[list[Tensor]] = [[] for _ in chunks]
        for batch in self._batches(chunks):
            for (index, _), part in zip(batch, self._pass([piece for _, piece in batch]), strict=True):
                hidden[index].append(part)
        return [torch.cat(parts) for parts in hidden]

    def _batches(self, chunks: Sequence[Chunk]) -> Iterator[list[tuple[int, Chunk]]]:
        """Cut the chunks and pack the pieces into passes; each piece comes with its chunk's index."""
        batch: list[tuple[int, Chunk]] = []
        most = room = self._pass.num_rows
        for index, chunk in enumerate(chunks):
            for piece in _cut(chunk, self._image, room, most):
                batch.append((index, piece))
                room -= piece.num_tokens
                if room == 0:
                    yield batch
                    batch, room = [], most
        if batch:
            yield batch


class FixedAttention:
    """Attends each row to the same number of gathered keys, later ones masked: its result depends on the row alone.

    Written out because torch's SDPA on a CPU gives each thread a buffer of its own alignment: on an AMD CPU a row's
    last bits then depend on the thread that computed it.
    """

    def __init__(self, pool: PagePool, buffers: StaticBuffers) -> None:
        self._tables = buffers.tables
        num_keys = buffers.tables.shape[1] * pool.page_size
        later = torch.arange(num_keys, device=pool.device) > buffers.positions.unsqueeze(1)
        self._later = later[:, None, None]
        self._groups, self._heads = pool.groups, pool.keys[0].shape[2]

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        num, num_heads, width = query.shape
        grouped = query.view(num, self._heads, self._groups, width).float()
        scores = grouped @ self._gather(keys).transpose(-1, -2) * scaling
        weights = scores.masked_fill(self._later, -torch.inf).softmax(-1)
        return (weights @ self._gather(values)).to(query.dtype).reshape(num, num_heads, width)

    def _gather(self, pages: Tensor) -> Tensor:
        """Gather [P, Z, Hkv, Dh] by the tables -> float32 [R, Hkv, keys, Dh]."""
        return pages[self._tables].flatten(1, 2).transpose(1, 2).float()


def _cut(chunk: Chunk, image: int, first: int, most: int) -> Iterator[Chunk]:
    """Cut a chunk into pieces: at most `first` tokens, then `most` each."""
    start = row = 0
    while start < chunk.num_tokens:
        ids = chunk.ids[start : start + first]
        num_rows = list(ids).count(image)
        yield Chunk(
            chunk.table, ids, chunk.features[row : row + num_rows] if chunk.features is not None and num_rows else None
        )
        start, row, first = start + len(ids), row + num_rows, most
