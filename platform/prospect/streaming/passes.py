"""One pass through the trunk for tokens of many sessions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from prospect.model.modeling import DSTProActLlamaForCausalLM
from prospect.streaming.attention import ATTENTION, Backend, FixedAttention, Part, RaggedStep
from prospect.streaming.backends import attention_backend
from prospect.streaming.pages import BlockTable, PagePool
from prospect.streaming.settings import StreamingSettings


@dataclass(frozen=True)
class Chunk:
    """Tokens of one session to run behind its table, with a feature row [D] for each image token.

    The table has room for them.
    """

    table: BlockTable
    ids: Sequence[int]
    rows: np.ndarray | None = None


class Trunk(Protocol):
    """Runs chunks of several sessions."""

    def __call__(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """Hidden states [n, H] of each chunk; its keys and values are in its table then."""
        ...


class PackedTrunk:
    """All chunks in one forward pass, of as many tokens as they have."""

    def __init__(self, model: DSTProActLlamaForCausalLM, pool: PagePool, backend: Backend) -> None:
        self._model, self._pool, self._backend = model, pool, backend

    def __call__(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        lengths = [len(chunk.ids) for chunk in chunks]
        step = RaggedStep(self._pool, [Part(c.table, n) for c, n in zip(chunks, lengths, strict=True)], self._backend)
        rows = [chunk.rows for chunk in chunks if chunk.rows is not None]
        frames = np.concatenate(rows) if rows else np.empty((0, self._model.config.vision_dim), np.float16)
        hidden = self._model.trunk(
            torch.tensor([[token for chunk in chunks for token in chunk.ids]], device=self._pool.device),
            torch.from_numpy(frames).to(self._pool.device),
            ATTENTION,
            position_ids=step.position_ids,
            ragged=step,
        )[0]
        for chunk, length in zip(chunks, lengths, strict=True):
            chunk.table.commit(length)
        return list(hidden.split(lengths))


class FixedTrunk:
    """The same in passes of one fixed shape, so that what a token gives does not depend on its company.

    Every pass has `num_rows` tokens, missing ones are padding; attention runs over `num_keys` keys, later ones hidden.
    """

    def __init__(self, model: DSTProActLlamaForCausalLM, pool: PagePool, num_rows: int, num_keys: int) -> None:
        self._model, self._pool, self._num_rows = model, pool, num_rows
        self._image = (model.config.grammar_ids or {})["<image>"]
        self._backend = partial(FixedAttention, num_keys=num_keys)
        self._padding = BlockTable(pool, 1)
        self._padding.pages = [pool.num_pages]

    def __call__(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        hidden: list[list[Tensor]] = [[] for _ in chunks]
        for batch in self._passes(chunks):
            parts = self._pass([piece for _, piece in batch]).split([len(piece.ids) for _, piece in batch])
            for (index, piece), part in zip(batch, parts, strict=True):
                hidden[index].append(part)
                piece.table.commit(len(piece.ids))
        return [torch.cat(parts) for parts in hidden]

    def _passes(self, chunks: Sequence[Chunk]) -> Iterator[list[tuple[int, Chunk]]]:
        """The chunks cut and packed into passes, with each piece's index."""
        batch: list[tuple[int, Chunk]] = []
        room = self._num_rows
        for index, chunk in enumerate(chunks):
            for piece in _cut(chunk, self._image, room, self._num_rows):
                batch.append((index, piece))
                room -= len(piece.ids)
                if room == 0:
                    yield batch
                    batch, room = [], self._num_rows
        if batch:
            yield batch

    def _pass(self, pieces: Sequence[Chunk]) -> Tensor:
        """[n, H] of the pieces' n tokens, at most `num_rows`."""
        ids = [token for piece in pieces for token in piece.ids]
        parts = [Part(piece.table, len(piece.ids)) for piece in pieces]
        parts += [Part(self._padding, 1)] * (self._num_rows - len(ids))
        step = RaggedStep(self._pool, parts, self._backend)
        tokens = torch.zeros(self._num_rows, dtype=torch.long)
        tokens[: len(ids)] = torch.tensor(ids)
        is_image = tokens == self._image
        frames = torch.zeros(self._num_rows, self._model.config.vision_dim, dtype=torch.float16)
        rows = [piece.rows for piece in pieces if piece.rows is not None]
        if rows:
            frames[is_image] = torch.from_numpy(np.concatenate(rows))
        device, model = self._pool.device, self._model
        text, images = model.model.embed_tokens(tokens.to(device)), model.mm_projector(frames.to(device))
        embeddings = torch.where(is_image.to(device).unsqueeze(-1), images.to(text.dtype), text)
        hidden = model.hidden_states(embeddings.unsqueeze(0), ATTENTION, position_ids=step.position_ids, ragged=step)
        return hidden[0, : len(ids)]


def make_trunk(
    model: DSTProActLlamaForCausalLM, pool: PagePool, settings: StreamingSettings, max_seq_len: int
) -> Trunk:
    """As the settings say."""
    if settings.deterministic:
        return FixedTrunk(model, pool, settings.deterministic_rows, max_seq_len)
    return PackedTrunk(model, pool, attention_backend(settings.attention, pool.device))


def _cut(chunk: Chunk, image: int, first: int, most: int) -> Iterator[Chunk]:
    """Pieces of a chunk: at most `first` tokens, then `most` each."""
    start = row = 0
    while start < len(chunk.ids):
        ids = chunk.ids[start : start + first]
        num_rows = list(ids).count(image)
        yield Chunk(chunk.table, ids, chunk.rows[row : row + num_rows] if chunk.rows is not None and num_rows else None)
        start, row, first = start + len(ids), row + num_rows, most
