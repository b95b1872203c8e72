"""The heads, read once for all frames of a step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prospect.model.interface import DSTModel
from prospect.streaming.runner.requests import Reading
from prospect.streaming.session.decisions import Probabilities

Request = tuple[Tensor, Tensor | None]
"""Hidden states of one session's frames [m, H], with its steps' vectors [K, W]."""


def read_heads(model: DSTModel, requests: Sequence[Request]) -> list[tuple[Reading, ...]]:
    """What the heads say at every frame of every request."""
    counts = [len(hidden) for hidden, _ in requests]
    if not sum(counts):
        return [()] * len(requests)
    hidden = torch.cat([hidden for hidden, _ in requests])
    rows = torch.stack(model.decision_probabilities(hidden), 1).tolist()
    states = iter(_read_states(model, hidden.split(counts), [vectors for _, vectors in requests]))
    readings = iter([Reading(Probabilities(*row), next(states)) for row in rows])
    return [tuple(next(readings) for _ in range(count)) for count in counts]


def _read_states(model: DSTModel, hidden: Sequence[Tensor], vectors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Logits [K, 3] for each frame, where its request has step vectors."""
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
