"""What a session's generator yields to the engine and what it gets back."""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Feed:
    """Tokens to run behind the session's cache, with a feature row [D] for each image token."""

    ids: list[int]
    rows: np.ndarray | None = None
    wants_logits: bool = False
    """Whether the reply needs the vocabulary logits of the last token: `lm_head` runs for no other."""


@dataclass(frozen=True)
class Reply:
    """Hidden states [n, H] of the tokens fed, and logits [V] of the last one if they were wanted."""

    hidden: Tensor
    logits: Tensor | None = None


Run = Generator[Feed, Reply, None]
"""A session at work."""
