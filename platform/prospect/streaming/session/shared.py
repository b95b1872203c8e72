"""What all sessions of an engine share, and the counters of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from prospect.dialogue.prompt import Context, ContextSettings
from prospect.dialogue.sequence import SequenceBuilder
from prospect.dialogue.state import StatePolicy
from prospect.dialogue.vocabulary import Vocabulary
from prospect.model.interface import DSTModel
from prospect.streaming.session.grammar import DeltaGrammar

CONTEXTS_KEPT = 32
"""Contexts that are remembered; some 100 kB each where the recipe is as long as it may be."""


@dataclass(frozen=True)
class RememberingBuilder(SequenceBuilder):
    """Makes a context once that is asked for several times, as while a session is opened or refreshed."""

    def context(self, **asked: Any) -> Context:
        """As the parent's; all that is asked must be hashable."""
        return self._remembered(**asked)

    @cached_property
    def _remembered(self) -> Callable[..., Context]:
        return lru_cache(CONTEXTS_KEPT)(super().context)


@dataclass
class SessionParts:
    """What all sessions of an engine share."""

    model: DSTModel
    vocabulary: Vocabulary
    context: ContextSettings
    policy: StatePolicy
    catch_up_frames: int
    """Most frames of one session that are fed in one chunk."""
    max_waiting_frames: int
    """Frames of one session that may wait; one more is refused."""
    history_events: int
    """Frames with events that a session remembers."""

    @cached_property
    def grammar(self) -> DeltaGrammar:
        return DeltaGrammar(self.vocabulary, self.policy, self.context.max_delta_tokens)

    @cached_property
    def builder(self) -> SequenceBuilder:
        return RememberingBuilder(self.vocabulary, self.context, self.model.config.tokens_per_frame)


@dataclass
class Counters:
    """Counts of what a session has done so far."""

    frames: int = 0
    """Decided frames."""
    fast_frames: int = 0
    """Frames decided without `lm_head`."""
    refreshes: int = 0
    lm_head_calls: int = 0
    overruled: int = 0
    """Tokens of deltas at which the model's first choice was not legal."""
