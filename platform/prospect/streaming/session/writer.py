"""The writer: generates deltas, utterances and summaries, and leaves the tokens of their text in the cache.

Generated tokens may differ from the tokens of their own text; training and a replay see the latter.
"""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from prospect.dialogue.sequence import delta_block, utterance_block
from prospect.dialogue.state import Delta, TaskState
from prospect.dialogue.vocabulary import Vocabulary
from prospect.streaming.kv_cache.block_table import BlockTable
from prospect.streaming.runner.requests import Feed, Reply
from prospect.streaming.session.sampling import RandomState, TextLimits, most_probable, next_token
from prospect.streaming.session.shared import Counters, SessionParts
from prospect.streaming.settings import GenerationSettings
from prospect.streaming.types import EngineEvent, TextPiece

_HALF = "\N{REPLACEMENT CHARACTER}"
"""What an incomplete character decodes to."""


@dataclass
class Writer:
    """Writes at the end of one session's cache; pieces of utterances go to `outbox`."""

    parts: SessionParts
    cache: BlockTable
    sampling: GenerationSettings
    randomness: RandomState
    outbox: list[EngineEvent]
    counters: Counters
    _num_sent: int = 0

    @property
    def vocabulary(self) -> Vocabulary:
        return self.parts.vocabulary

    def can_write_delta(self, state: TaskState, wanted: TaskState | None) -> bool:
        """Return whether any delta from `state` is legal and short enough; given `wanted`, whether one leads there."""
        if wanted is None:
            return not self.parts.grammar.start(state).done
        return bool(self.parts.grammar.shortened(state.delta_to(wanted)))

    def generate_delta(self, state: TaskState) -> Generator[Feed, Reply, tuple[Delta, Tensor]]:
        """Generate a delta that is legal in `state`; return it and the hidden state [H] at its stop token."""
        writer, start = self.parts.grammar.start(state), self.cache.length
        fed: list[int] = []
        ahead = [self.vocabulary.dst]
        while True:
            ahead += writer.take_forced()
            if writer.done:
                break
            logits = yield from self._logits(ahead)
            fed, ahead = fed + ahead, []
            stops = sorted(self.vocabulary.stop_ids) if writer.may_stop else []
            token = most_probable(logits, [*writer.choices, *stops])
            self.counters.overruled += token != int(logits.argmax())
            if token in stops:
                break
            writer.take(token)
            ahead = [token]
        hidden = yield from self._leave_exactly(start, fed, delta_block(self.vocabulary, writer.delta))
        return writer.delta, hidden

    def write_delta_to(self, state: TaskState, wanted: TaskState) -> Generator[Feed, Reply, tuple[Delta, Tensor]]:
        """Write the delta from `state` to `wanted`, shortened to the limit, without `lm_head`.

        Returns it and the hidden state [H] at its stop token.
        """
        delta = self.parts.grammar.shortened(state.delta_to(wanted))
        reply = yield Feed(delta_block(self.vocabulary, delta))
        return delta, reply.hidden[-1]

    def generate_utterance(self, frame: int) -> Generator[Feed, Reply, str | None]:
        """Generate an utterance and send its pieces as they come; None: the model had no words."""
        start, vocabulary, limit = self.cache.length, self.vocabulary, self.parts.context.max_utterance_tokens
        self._num_sent = 0
        fed, ahead = yield from self._generate([vocabulary.asst], None, limit, frame)
        text = self._shortened(vocabulary.decode([*fed, *ahead][1:]).strip(), limit)
        if len(text) > self._num_sent:  # it ended in an incomplete character
            self.outbox.append(TextPiece(frame, text[self._num_sent :]))
        if text:
            yield from self._leave_exactly(start, fed, utterance_block(vocabulary, text))
        else:
            self.cache.truncate(start)
        return text or None

    def generate_summary(self, question: list[int], image: np.ndarray, limit: int) -> Generator[Feed, Reply, str]:
        """Generate the answer to a `summary_request`, whose image has features [I, D]; the caller drops its tokens."""
        fed, ahead = yield from self._generate([*question, self.vocabulary.asst], image, limit)
        return self._shortened(self.vocabulary.decode([*fed, *ahead][len(question) + 1 :]).strip(), limit)

    def _generate(
        self, prefix: list[int], image: np.ndarray | None, limit: int, frame: int | None = None
    ) -> Generator[Feed, Reply, tuple[list[int], list[int]]]:
        """Generate after `prefix` until a stop id or `limit`; return the tokens fed, and those not yet fed."""
        limits = TextLimits(limit, self.vocabulary.stop_ids, self.vocabulary.never_generated)
        fed: list[int] = []
        ahead, ids = prefix, list[int]()
        while len(ids) < limit:
            logits = yield from self._logits(ahead, image if not fed else None)
            fed, ahead = fed + ahead, []
            token = next_token(logits, limits, not ids, self.sampling, self.randomness)
            if token in limits.stop_ids:
                break
            ids.append(token)
            ahead = [token]
            if frame is not None:
                self._send_piece(frame, ids)
        return fed, ahead

    def _logits(self, ids: list[int], features: np.ndarray | None = None) -> Generator[Feed, Reply, Tensor]:
        reply = yield Feed(ids, features, wants_logits=True)
        self.counters.lm_head_calls += 1
        assert reply.logits is not None
        return reply.logits

    def _shortened(self, text: str, limit: int) -> str:
        """Return the longest start of `text` within `limit` tokens: an incomplete character takes more as text."""
        while len(ids := self.vocabulary.encode(text)) > limit:
            text = self.vocabulary.decode(ids[:limit]).rstrip(_HALF).rstrip()
        return text

    def _send_piece(self, frame: int, ids: list[int]) -> None:
        """Send the new part of the text, unless it ends in an incomplete character."""
        text = self.vocabulary.decode(ids).lstrip()
        if len(text) > self._num_sent and not text.endswith(_HALF):
            self.outbox.append(TextPiece(frame, text[self._num_sent :]))
            self._num_sent = len(text)

    def _leave_exactly(self, start: int, fed: list[int], block: list[int]) -> Generator[Feed, Reply, Tensor]:
        """Make the cache hold exactly `block` from `start` on; return the hidden state [H] at its stop token."""
        missing = block[len(fed) :]
        if block[: len(fed)] != fed:
            self.cache.truncate(start)
            missing = block
        reply = yield Feed(missing)
        return reply.hidden[-1]
