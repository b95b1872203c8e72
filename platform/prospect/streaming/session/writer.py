"""How a session writes: deltas, utterances and summaries, so that its cache holds exactly their own tokens.

What was generated may be tokenised otherwise than its text; training and a replay see the text's own tokens.
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
from prospect.streaming.types import Event, TextPiece

_HALF = "\N{REPLACEMENT CHARACTER}"
"""What half a character decodes to."""


@dataclass
class Writer:
    """Writes at the end of one session's cache."""

    parts: SessionParts
    cache: BlockTable
    sampling: GenerationSettings
    randomness: RandomState
    outbox: list[Event]
    counters: Counters
    _num_sent: int = 0

    @property
    def vocabulary(self) -> Vocabulary:
        return self.parts.vocabulary

    def has_delta(self, state: TaskState, wanted: TaskState | None) -> bool:
        """Whether there is a legal transition, or one to the state that is wanted, and room for it."""
        if wanted is None:
            return not self.parts.grammar.start(state).done
        return bool(self.parts.grammar.shortened(state.delta_to(wanted)))

    def delta(self, state: TaskState) -> Generator[Feed, Reply, tuple[Delta, Tensor]]:
        """Generates a delta that is legal in `state`; returns it and the hidden state at its stop token."""
        writer, start = self.parts.grammar.start(state), self.cache.length
        fed: list[int] = []
        ahead = [self.vocabulary.dst]
        while True:
            ahead += writer.run()
            if writer.done:
                break
            logits = yield from self._ask(ahead)
            fed, ahead = fed + ahead, []
            stops = sorted(self.vocabulary.stop_ids) if writer.may_stop else []
            token = most_probable(logits, [*writer.choices, *stops])
            self.counters.overruled += token != int(logits.argmax())
            if token in stops:
                break
            writer.take(token)
            ahead = [token]
        hidden = yield from self._settle(start, fed, delta_block(self.vocabulary, writer.delta))
        return writer.delta, hidden

    def given_delta(self, state: TaskState, wanted: TaskState) -> Generator[Feed, Reply, tuple[Delta, Tensor]]:
        """Writes the delta from `state` to `wanted` as far as there is room; `lm_head` is not asked for it."""
        delta = self.parts.grammar.shortened(state.delta_to(wanted))
        reply = yield Feed(delta_block(self.vocabulary, delta))
        return delta, reply.hidden[-1]

    def utterance(self, frame: int) -> Generator[Feed, Reply, str | None]:
        """Generates an utterance; its pieces go out as they come."""
        start, vocabulary, limit = self.cache.length, self.vocabulary, self.parts.context.max_utterance_tokens
        self._num_sent = 0
        fed, ahead = yield from self._text([vocabulary.asst], None, limit, frame)
        text = self._within(vocabulary.decode([*fed, *ahead][1:]).strip(), limit)
        if len(text) > self._num_sent:  # it ended in half a character
            self.outbox.append(TextPiece(frame, text[self._num_sent :]))
        if text:
            yield from self._settle(start, fed, utterance_block(vocabulary, text))
        else:
            self.cache.truncate(start)
        return text or None

    def summary(self, question: list[int], image: np.ndarray, limit: int) -> Generator[Feed, Reply, str]:
        """The answer to a `summary_request` with its image's features [I, D]; it stays in no cache."""
        fed, ahead = yield from self._text([*question, self.vocabulary.asst], image, limit)
        return self._within(self.vocabulary.decode([*fed, *ahead][len(question) + 1 :]).strip(), limit)

    def _text(
        self, prefix: list[int], image: np.ndarray | None, limit: int, frame: int | None = None
    ) -> Generator[Feed, Reply, tuple[list[int], list[int]]]:
        """Tokens behind `prefix` until a stop id or `limit`: what was fed, and what was not yet."""
        limits = TextLimits(limit, self.vocabulary.stop_ids, self.vocabulary.never_generated)
        fed: list[int] = []
        ahead, ids = prefix, list[int]()
        while len(ids) < limit:
            logits = yield from self._ask(ahead, image if not fed else None)
            fed, ahead = fed + ahead, []
            token = next_token(logits, limits, not ids, self.sampling, self.randomness)
            if token in limits.stop_ids:
                break
            ids.append(token)
            ahead = [token]
            if frame is not None:
                self._send_piece(frame, ids)
        return fed, ahead

    def _ask(self, ids: list[int], rows: np.ndarray | None = None) -> Generator[Feed, Reply, Tensor]:
        reply = yield Feed(ids, rows, wants_logits=True)
        self.counters.lm_head_calls += 1
        assert reply.logits is not None
        return reply.logits

    def _within(self, text: str, limit: int) -> str:
        """The start of `text` that `limit` tokens hold: half a character generated takes more as text."""
        while len(ids := self.vocabulary.encode(text)) > limit:
            text = self.vocabulary.decode(ids[:limit]).rstrip(_HALF).rstrip()
        return text

    def _send_piece(self, frame: int, ids: list[int]) -> None:
        """A token may hold half a character; a piece goes out when the text so far is whole."""
        text = self.vocabulary.decode(ids).lstrip()
        if len(text) > self._num_sent and not text.endswith(_HALF):
            self.outbox.append(TextPiece(frame, text[self._num_sent :]))
            self._num_sent = len(text)

    def _settle(self, start: int, fed: list[int], block: list[int]) -> Generator[Feed, Reply, Tensor]:
        """Leaves exactly `block` in the cache from `start` on; returns the hidden state at its stop token."""
        missing = block[len(fed) :]
        if block[: len(fed)] != fed:
            self.cache.truncate(start)
            missing = block
        reply = yield Feed(missing)
        return reply.hidden[-1]
