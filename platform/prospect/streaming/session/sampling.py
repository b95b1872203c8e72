"""Choose the next token: the most probable one, or one drawn from the session's own random numbers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prospect.hashing import derived_seed
from prospect.streaming.settings import GenerationSettings


@dataclass
class RandomState:
    """Random numbers in [0, 1) that depend on `seed` and the number of draws alone, equal on every machine."""

    seed: int
    draws: int = 0

    def draw(self) -> float:
        self.draws += 1
        return (derived_seed(self.seed, self.draws) >> 10) / 2**53


@dataclass(frozen=True)
class TextLimits:
    """Limits of a generated text."""

    max_tokens: int
    stop_ids: frozenset[int]
    never: Sequence[int]
    """Tokens that must not be generated."""


def most_probable(logits: Tensor, among: Collection[int]) -> int:
    """Return the token of `among` with the highest of the logits [V]; of equal tokens, the first."""
    candidates = list(among)
    return candidates[int(logits[candidates].argmax())]


def next_token(
    logits: Tensor, limits: TextLimits, first: bool, settings: GenerationSettings, randomness: RandomState
) -> int:
    """Choose a text's next token from logits [V]; the first token is never a stop token."""
    logits = logits.float().clone()
    logits[list(limits.never)] = -torch.inf
    if first:
        logits[list(limits.stop_ids)] = -torch.inf
    if settings.decoding == "greedy":
        return int(logits.argmax())
    probabilities, tokens = torch.softmax(logits / settings.temperature, -1).sort(descending=True, stable=True)
    reached = probabilities.double().cumsum(0)
    kept = int((reached < settings.top_p).sum()) + 1  # the token that crosses top_p is in
    reached = reached[:kept]
    drawn = int((reached <= randomness.draw() * reached[-1].item()).sum())
    return int(tokens[min(drawn, len(reached) - 1)])
