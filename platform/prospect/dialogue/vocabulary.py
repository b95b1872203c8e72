"""The tokens of the sequence grammar, over any fast tokenizer of transformers.

The tokenizer is handed in, so that this layer needs no model library. Text that people wrote never turns
into a control token: `neutralise` breaks up every special string in it.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from prospect.dialogue.chat import ChatTemplate
from prospect.errors import CheckpointError

IMAGE, USER, DST, ASST, SILENT, PAD = "<image>", "[USER]", "[DST]", "[ASST]", "[SILENT]", "[PAD]"
GRAMMAR_TOKENS = (IMAGE, USER, DST, ASST, SILENT, PAD)


class Vocabulary:
    """Token ids of the grammar and the two ways in which text becomes tokens.

    Attributes:
        image, user, dst, asst, silent, pad: ids of the grammar's own tokens.
        stop: the canonical stop token, which closes every user turn, delta and utterance.
        stop_ids: every id that ends a generation; holds `stop`.
        chat: the tokenizer's chat template.

    Raises:
        CheckpointError: the tokenizer lacks the grammar's tokens or a usable chat template.
    """

    def __init__(self, tokenizer: Any, stop_ids: Iterable[int] = ()) -> None:
        ids = tokenizer.convert_tokens_to_ids(list(GRAMMAR_TOKENS))
        missing = [
            token for token, id_ in zip(GRAMMAR_TOKENS, ids, strict=True) if id_ in (None, tokenizer.unk_token_id)
        ]
        if missing:
            raise CheckpointError(f"tokenizer: {missing} are not in it; prepare it with `extend_tokenizer` first")
        self.tokenizer = tokenizer
        self.image, self.user, self.dst, self.asst, self.silent, self.pad = ids
        self.stop: int = tokenizer.eos_token_id
        self.stop_ids = frozenset(stop_ids) | {self.stop}
        self.chat = ChatTemplate.of(tokenizer)
        added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        specials = sorted(added | set(tokenizer.all_special_tokens) | set(GRAMMAR_TOKENS), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, specials)))

    @property
    def never_generated(self) -> tuple[int, ...]:
        """Grammar tokens that no delta and no utterance may hold."""
        return (self.image, self.user, self.dst, self.asst, self.silent, self.pad)

    def neutralise(self, text: str) -> str:
        """`text` with a space inside every special token's string, so that it stays plain text."""
        return self._special.sub(lambda match: match.group()[0] + " " + match.group()[1:], text)

    def encode(self, text: str) -> list[int]:
        """Ids of an event's text, without any special token."""
        return self.tokenizer(self.neutralise(text), add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def extend_tokenizer(tokenizer: Any) -> int:
    """Adds the grammar's tokens to a base model's tokenizer in place; returns how many were new."""
    return tokenizer.add_special_tokens({"additional_special_tokens": list(GRAMMAR_TOKENS)})
