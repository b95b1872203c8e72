"""Feeds and replies: what a session's generator asks the executor to run, and what it gets back."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

FeedKind = Literal["frame", "context", "text"]
"""`frame`: images to decide at; `context`: a new context or a restored session; `text`: a text being written."""


@dataclass(frozen=True)
class Feed:
    """Tokens to run behind those in the session's cache."""

    ids: list[int]
    features: np.ndarray | None = None
    """[num_images, D] of the image tokens; None if no token is an image."""
    wants_logits: bool = False
    """Whether the reply needs the vocabulary logits of the last token; `lm_head` runs for these tokens only."""
    kind: FeedKind = "text"
    num_shareable: int = 0
    """Length of the prefix whose pages other sessions may share: text at the start of an empty cache."""
    decide_at: tuple[int, ...] = ()
    """Indices of the tokens at which the decision heads are read."""
    step_vectors: Tensor | None = None
    """[K, W] of the recipe's steps; given, the state head is read as well."""


@dataclass(frozen=True)
class Reading:
    """What the heads read at one frame."""

    p_speak: float
    p_update: float
    states: Tensor | None = None
    """Logits [K, 3] of the state head; None where the feed has no step vectors."""


@dataclass(frozen=True)
class Reply:
    """The results of a feed of n tokens."""

    hidden: Tensor
    """Hidden states [n, H]."""
    logits: Tensor | None = None
    """[V] of the last token, where the feed wants them."""
    readings: tuple[Reading, ...] = ()
    """One for each index in the feed's `decide_at`."""


FeedGenerator = Generator[Feed, Reply, None]
"""A session at work: yields feeds, and is resumed with their replies."""
