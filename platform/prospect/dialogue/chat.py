"""Chat prompts through a tokenizer's own template, whatever that template does with the messages."""

from dataclasses import dataclass
from typing import Any

from prospect.errors import CheckpointError

CHAT_DATE = "26 Jul 2024"
"""Llama's template prints today's date unless it is given one; a context must not depend on the day."""


@dataclass(frozen=True)
class ChatText:
    """A rendered chat prompt with the characters that each token covers."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ChatTemplate:
    """Renders one system and one user message as a prompt for the assistant's answer.

    Attributes:
        tokenizer: of transformers, with a chat template.
        takes_system: whether the template shows a system message; else its text opens the user message.
        takes_parts: whether a message's content is a list of typed parts, and not a string.
    """

    tokenizer: Any
    takes_system: bool
    takes_parts: bool

    @classmethod
    def of(cls, tokenizer: Any) -> "ChatTemplate":
        """Find out by one short prompt what the tokenizer's template takes.

        Raises:
            CheckpointError: the tokenizer has no template, or its template shows no message.
        """
        if not tokenizer.chat_template:
            raise CheckpointError(
                "tokenizer: the chat template is missing, as in models that are not tuned to instructions; take the "
                "tuned one, for example Llama-3.2-3B-Instruct"
            )
        for takes_parts in (False, True):
            for takes_system in (True, False):
                template = cls(tokenizer, takes_system, takes_parts)
                if template._shows("Be brief.", "What comes first?"):
                    return template
        raise CheckpointError("tokenizer: its chat template leaves out the text of system and user messages")

    def render(self, system: str, user: str) -> ChatText:
        """The prompt as text and tokens: with a fixed date, BOS once.

        Special tokens in `system` and `user` must have been neutralised, and neither has outer white space: some
        templates trim it.
        """
        text = self._text(system, user)
        bos = self.tokenizer.bos_token
        if bos and not text.startswith(bos):
            text = bos + text
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return ChatText(text, tuple(encoding["input_ids"]), tuple(map(tuple, encoding["offset_mapping"])))

    def _shows(self, system: str, user: str) -> bool:
        try:
            text = self._text(system, user)
        except Exception:  # a template is a program: it refuses messages by whatever it likes
            return False
        return system in text and user in text

    def _text(self, system: str, user: str) -> str:
        turns = [("system", system), ("user", user)] if self.takes_system else [("user", f"{system}\n\n{user}")]
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if self.takes_parts else text}
            for role, text in turns
        ]
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, date_string=CHAT_DATE
        )
