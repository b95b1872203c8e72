"""Constrained decoding of deltas: only tokens of a legal delta can be generated.

The automaton walks the tokens of the legal next transitions; after each it may stop, or go on with `; ` and another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from prospect.dialogue.sequence import delta_block
from prospect.dialogue.state import Delta, StatePolicy, TaskState, Transition, format_delta
from prospect.dialogue.vocabulary import Vocabulary

_BEFORE = Transition(0, completes=False)
"""Any transition: later transitions are spelt after it, to see how the tokenizer joins them."""


@dataclass
class DeltaGrammar:
    """Spells transitions as tokens, and knows which transitions may follow.

    Args:
        vocabulary: the model's tokens.
        policy: whether a step may complete without having started.
        max_tokens: most tokens of a delta's text, without its stop token.
    """

    vocabulary: Vocabulary
    policy: StatePolicy
    max_tokens: int
    _pieces: dict[tuple[bool, Transition], tuple[int, ...]] = field(default_factory=dict)
    _joins: bool = False
    """Whether the tokenizer spells a transition differently after another one."""

    def start(self, state: TaskState) -> "DeltaWriter":
        """Begin a delta in `state`."""
        return DeltaWriter(self, state)

    def piece(self, transition: Transition, first: bool) -> tuple[int, ...]:
        """Return the tokens that `transition` adds to a delta, with `; ` before it unless it comes first."""
        key = first, transition
        if key not in self._pieces:
            self._pieces[key] = tuple(self._spell(transition, first))
        return self._pieces[key]

    def _spell(self, transition: Transition, first: bool) -> Sequence[int]:
        encode = self.vocabulary.encode
        if first:
            return encode(str(transition))
        before, joined = encode(str(_BEFORE)), encode(format_delta((_BEFORE, transition)))
        if joined[: len(before)] == before:
            return joined[len(before) :]
        self._joins = True
        return encode(f"; {transition}")

    def next_pieces(self, delta: Delta, state: TaskState) -> dict[Transition, tuple[int, ...]]:
        """Return the tokens of each transition that may follow `delta`, which led to `state`, within the limit."""
        spelt = {t: self.piece(t, first=not delta) for t in state.legal_transitions(self.policy)}
        return {transition: ids for transition, ids in spelt.items() if self.fits((*delta, transition))}

    def fits(self, delta: Delta) -> bool:
        """Return whether `delta` is short enough, spelt piece by piece and spelt as one text."""
        length = sum(len(self.piece(transition, first=not i)) for i, transition in enumerate(delta))
        if self._joins:
            length = max(length, len(delta_block(self.vocabulary, delta)) - 2)
        return length <= self.max_tokens

    def shortened(self, delta: Delta) -> Delta:
        """Return the first transitions of `delta` that fit."""
        while delta and not self.fits(delta):
            delta = delta[:-1]
        return delta


class DeltaWriter:
    """A delta that is being written token by token.

    Attributes:
        delta: the complete transitions.
        state: the state that they lead to.
    """

    def __init__(self, grammar: DeltaGrammar, state: TaskState) -> None:
        self._grammar = grammar
        self.delta: Delta = ()
        self.state = state
        self._written = 0
        self._ahead = grammar.next_pieces((), state)

    @property
    def choices(self) -> tuple[int, ...]:
        """The tokens that may come next, without the stop token; empty: nothing can be added."""
        return tuple(dict.fromkeys(ids[self._written] for ids in self._ahead.values()))

    @property
    def may_stop(self) -> bool:
        """Whether the tokens so far are a whole delta."""
        return bool(self.delta) and self._written == 0

    @property
    def done(self) -> bool:
        """Whether nothing can be added: the delta ends here, or no delta is legal at all."""
        return not self._ahead

    def take(self, token: int) -> None:
        """Append one of `choices`."""
        self._ahead = {t: ids for t, ids in self._ahead.items() if ids[self._written] == token}
        assert self._ahead, f"token {token} cannot stand here"
        self._written += 1
        complete = next((t for t, ids in self._ahead.items() if len(ids) == self._written), None)
        if complete is not None:
            self.delta += (complete,)
            self.state, _ = self.state.apply((complete,), self._grammar.policy)
            self._written, self._ahead = 0, self._grammar.next_pieces(self.delta, self.state)

    def take_forced(self) -> list[int]:
        """Append the tokens without an alternative, up to the next choice; return them."""
        taken = []
        while not self.may_stop and len(self.choices) == 1:
            taken.append(self.choices[0])
            self.take(taken[-1])
        return taken
