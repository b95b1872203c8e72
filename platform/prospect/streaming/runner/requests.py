"""What a session's generator yields to the engine and what it gets back."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

FeedKind = Literal["frame", "context", "text"]
"""What is fed: images to decide at, a context (or a session's past again), or text of a running generation."""


@dataclass(frozen=True)
class Feed:
    """Tokens to run behind the session's cache, with a feature row [D] for each image token."""

    ids: list[int]
    features: np.ndarray | None = None
    wants_logits: bool = False
    """Whether the reply needs the vocabulary logits of the last token: `lm_head` runs for no other."""
    kind: FeedKind = "text"
    num_shareable: int = 0
    """Tokens at the beginning that other sessions' caches may begin with as well: text behind an empty cache."""
    decide_at: tuple[int, ...] = ()
    """Indices of the tokens at which the heads are read."""
    step_vectors: Tensor | None = None
    """[K, W] of the recipe's steps, for the state head to be read as well."""


@dataclass(frozen=True)
class Reading:
    """What the heads say at one frame."""

    p_speak: float
    p_update: float
    states: Tensor | None = None
    """Logits [K, 3] of the state head, where the feed brought step vectors."""


@dataclass(frozen=True)
class Reply:
    """Hidden states [n, H] of the tokens fed, and logits [V] of the last one if they were wanted."""

    hidden: Tensor
    logits: Tensor | None = None
    readings: tuple[Reading, ...] = ()
    """One for each token of the feed's `decide_at`."""


FeedGenerator = Generator[Feed, Reply, None]
"""A session at work."""
