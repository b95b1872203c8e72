"""Baselines of the engine: transformers with a DynamicCache, one session after another, and a padded batch.

Both decide as the published models do: a softmax over the whole vocabulary at every frame. They speak by the same
schedule as the engine. A cache starts filled with random numbers, which costs them nothing; rebuilding one costs its
forward pass.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from prospect.benchmarks.engine.load import BLOCK_TOKENS, TAIL_FRAMES, Happening, Workload
from prospect.benchmarks.engine.model import kv_shape
from prospect.model.checkpoint import LoadedModel

_PLAIN = 2
"""An id of ordinary text, which rebuilt contexts consist of."""

Waiting = tuple[int, Tensor, bool]
"""Frame number, features [1, D], whether it speaks."""


class _Peer:
    def __init__(self, loaded: LoadedModel, workload: Workload) -> None:
        self._model: Any = loaded.model
        self._vocabulary, self._workload = loaded.vocabulary, workload
        self._tokens = workload.suite.utterance_tokens
        self._model.set_attn_implementation("sdpa")

    def _random_cache(self, batch: int, length: int) -> DynamicCache:
        weight, (heads, width) = self._model.text.norm.weight, kv_shape(self._model)
        cache = DynamicCache()
        noise = torch.randn(batch, heads, length, width, device=weight.device).to(weight.dtype)
        for layer in range(self._model.kv_geometry.layers):
            cache.update(noise.clone(), noise.clone(), layer)
        return cache

    def _prefill(self, batch: int) -> DynamicCache:
        cache, length = DynamicCache(), self._workload.rebuilt + TAIL_FRAMES
        ids = torch.full((batch, length), _PLAIN, device=self._model.device)
        self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def _embed_frame(self, features: Tensor) -> Tensor:
        """[1, 1, H] of [1, D]."""
        ids = torch.full((1, 1), self._vocabulary.image, device=self._model.device)
        return self._model.embed(ids, features.to(self._model.device))

    def _embed_token(self, token: int) -> Tensor:
        return self._model.text.embed_tokens(torch.full((1, 1), token, device=self._model.device))

    def _is_full(self, length: int) -> bool:
        return length + 1 + self._tokens + BLOCK_TOKENS > self._workload.context

    def _read(self, logits: Tensor) -> list[float]:
        """Probability of speaking from logits [B, V], on the host."""
        return torch.softmax(logits.float(), -1)[:, self._vocabulary.asst].tolist()


class LoopSystem(_Peer):
    """One session after another, in order of arrival; an utterance is written before the next frame is looked at."""

    def __init__(self, loaded: LoadedModel, workload: Workload) -> None:
        super().__init__(loaded, workload)
        self._caches: list[DynamicCache] = []
        self._queue: deque[tuple[int, Waiting]] = deque()
        self._talking: tuple[int, int] | None = None
        self._token = self._left = 0

    def fill(self, lengths: Sequence[int]) -> None:
        self._caches = [self._random_cache(1, length) for length in lengths]

    def push(self, session: int, frame: int, features: np.ndarray, speaks: bool) -> None:
        self._queue.append((session, (frame, torch.from_numpy(features), speaks)))

    def busy(self) -> bool:
        return bool(self._queue) or self._talking is not None

    def clear(self) -> None:
        self._queue.clear()

    @torch.inference_mode()
    def step(self) -> list[Happening]:
        return self._decide() if self._talking is None else self._write(*self._talking)

    def _decide(self) -> list[Happening]:
        session, (frame, features, speaks) = self._queue.popleft()
        happenings = []
        if self._is_full(self._caches[session].get_seq_length()):
            self._caches[session] = self._prefill(1)
            happenings.append(Happening(session, frame, "refreshed"))
        self._read(self._forward(session, self._embed_frame(features)))
        if not speaks:
            return [*happenings, Happening(session, frame, "decided")]
        self._talking, self._token, self._left = (session, frame), self._vocabulary.asst, self._tokens
        return happenings

    def _write(self, session: int, frame: int) -> list[Happening]:
        logits = self._forward(session, self._embed_token(self._token))
        if not self._left:  # that was the stop token
            self._talking = None
            return [Happening(session, frame, "decided", spoke=True)]
        first = self._left == self._tokens
        self._left -= 1
        self._token = int(logits.argmax()) if self._left else self._vocabulary.stop
        return [Happening(session, frame, "text")] if first else []

    def _forward(self, session: int, embeddings: Tensor) -> Tensor:
        cache = self._caches[session]
        return self._model(inputs_embeds=embeddings, past_key_values=cache, use_cache=True).logits[:, -1]


class PaddedSystem(_Peer):
    """All sessions in one batch and in lock-step.

    A step waits for a frame of each, and while some speak the others' rows are padding, which takes room in the cache.
    A full cache is rebuilt for all.
    """

    def __init__(self, loaded: LoadedModel, workload: Workload) -> None:
        super().__init__(loaded, workload)
        self._waiting: list[deque[Waiting]] = [deque() for _ in range(workload.sessions)]
        self._talking: dict[int, int] = {}
        """Frame by session."""
        self._left = 0
        self._cache = DynamicCache()
        self._mask = torch.empty(0)
        self._positions = torch.empty(0)

    def fill(self, lengths: Sequence[int]) -> None:
        self._cache = self._random_cache(len(lengths), max(lengths))
        self._positions = torch.tensor(lengths, device=self._model.device)
        columns = torch.arange(max(lengths), device=self._model.device)
        self._mask = (columns >= max(lengths) - self._positions[:, None]).long()

    def push(self, session: int, frame: int, features: np.ndarray, speaks: bool) -> None:
        self._waiting[session].append((frame, torch.from_numpy(features), speaks))

    def busy(self) -> bool:
        return bool(self._talking) or all(self._waiting)

    def clear(self) -> None:
        for queue in self._waiting:
            queue.clear()

    @torch.inference_mode()
    def step(self) -> list[Happening]:
        return self._write() if self._talking else self._decide()

    def _decide(self) -> list[Happening]:
        frames = [queue.popleft() for queue in self._waiting]
        happenings = self._rebuild(frames) if self._is_full(self._cache.get_seq_length()) else []
        embeddings = torch.cat([self._embed_frame(features) for _, features, _ in frames])
        self._read(self._forward(embeddings, list(range(len(frames)))))
        self._talking = {session: frame for session, (frame, _, speaks) in enumerate(frames) if speaks}
        self._left = self._tokens
        silent = (Happening(s, frame, "decided") for s, (frame, _, speaks) in enumerate(frames) if not speaks)
        return [*happenings, *silent]

    def _write(self) -> list[Happening]:
        first, last = self._left == self._tokens, not self._left
        token = self._vocabulary.asst if first else self._vocabulary.stop if last else _PLAIN
        embeddings = self._embed_token(token).expand(len(self._waiting), -1, -1)
        self._forward(embeddings, list(self._talking)).argmax(-1).tolist()
        self._left -= 1
        if last:
            done = [Happening(session, frame, "decided", spoke=True) for session, frame in self._talking.items()]
            self._talking = {}
            return done
        return [Happening(session, frame, "text") for session, frame in self._talking.items()] if first else []

    def _forward(self, embeddings: Tensor, active: list[int]) -> Tensor:
        """Logits [S, V] of one more column, which is padding but for the sessions in `active`."""
        column = torch.zeros(len(self._positions), 1, dtype=self._mask.dtype, device=self._mask.device)
        column[active] = 1
        self._mask = torch.cat([self._mask, column], 1)
        logits = self._model(
            inputs_embeds=embeddings,
            attention_mask=self._mask,
            position_ids=self._positions[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        self._positions = self._positions + column[:, 0]
        return logits

    def _rebuild(self, frames: list[Waiting]) -> list[Happening]:
        self._cache = self._prefill(len(frames))
        length = self._cache.get_seq_length()
        self._mask = self._mask.new_ones(len(frames), length)
        self._positions = torch.full_like(self._positions, length)
        return [Happening(session, frame, "refreshed") for session, (frame, _, _) in enumerate(frames)]
