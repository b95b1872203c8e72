"""Caches each video's requests and answers under the hash of its content, so that nothing is asked twice.

`<root>/labels/llm/<key>.json` is one `LLMExchange`, written whole after every answer and every failure.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Self

from pyarrow import fs
from pydantic import ValidationError

from prospect.data.labels.llm.prompt import MappingRequest, Message, correction, opening
from prospect.data.labels.llm.settings import LLMSettings
from prospect.data.labels.llm.validators import AnswerFailure, InvalidAnswer, read_mapping
from prospect.dialogue.schema import Record
from prospect.errors import DataError
from prospect.files import open_filesystem, write_file
from prospect.hashing import fingerprint


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class CachedAnswer(Record):
    """One chat completion, as far as it is used."""

    text: str
    finish_reason: str = ""
    model: str = ""
    """The model that the endpoint says it used."""
    input_tokens: int = 0
    output_tokens: int = 0


class Attempt(Record):
    """One request: its answer and what was wrong with it, or why there is none."""

    at: str
    """When it ended, ISO 8601 in UTC."""
    answer: CachedAnswer | None = None
    failures: tuple[AnswerFailure, ...] = ()
    error: str = ""
    """Why there is no answer."""
    request_id: str = ""
    """The batch line that this came from, so that a batch read twice counts once."""


class LLMExchange(Record):
    """Everything about one video's mapping."""

    key: str
    model: str
    prompt_hash: str
    messages: tuple[Message, ...]
    num_steps: int
    num_blocks: int
    attempts: tuple[Attempt, ...] = ()
    assignment: tuple[int, ...] | None = None
    """Step index of each block, once an answer was right."""
    failure: str = ""
    """Why there is no assignment; empty while it may still be found."""

    @classmethod
    def begin(cls, request: MappingRequest, settings: LLMSettings) -> Self:
        messages = opening(request)
        asked = {"model": settings.model, "temperature": settings.temperature, "extra": settings.extra_body}
        return cls(
            key=fingerprint({"messages": messages, **asked}),
            model=settings.model,
            prompt_hash=fingerprint(messages),
            messages=messages,
            num_steps=len(request.steps),
            num_blocks=len(request.blocks),
        )

    @property
    def invalid(self) -> tuple[Attempt, ...]:
        """Attempts whose answer was not a valid mapping."""
        return tuple(attempt for attempt in self.attempts if attempt.failures)

    def finished(self, max_retries: int) -> bool:
        """Whether it is settled. Requests without an answer do not count: the next run asks again."""
        return self.assignment is not None or len(self.invalid) > max_retries

    def body(self, settings: LLMSettings) -> dict[str, Any]:
        """The next request: the conversation so far, with each wrong answer and what was wrong with it."""
        messages = [*self.messages]
        for attempt in self.invalid:
            if attempt.answer is not None:
                messages += correction(attempt.answer.text, [failure.feedback for failure in attempt.failures])
        body: dict[str, Any] = {"model": settings.model, "messages": messages}
        if settings.temperature is not None:
            body["temperature"] = settings.temperature
        if settings.max_tokens is not None:
            body["max_tokens"] = settings.max_tokens
        return {**body, **settings.extra_body}

    def answered(self, answer: CachedAnswer, request_id: str = "") -> Self:
        """With one more answer, judged."""
        try:
            assignment = read_mapping(answer.text, self.num_steps, self.num_blocks, answer.finish_reason)
        except InvalidAnswer as invalid:
            number = len(self.invalid) + 1
            failure = f"{number} answers were no mapping, the last because: {invalid}"
            attempt = Attempt(at=now(), answer=answer, failures=invalid.failures, request_id=request_id)
            return self._with(attempt, failure=failure)
        return self._with(Attempt(at=now(), answer=answer, request_id=request_id), assignment=assignment, failure="")

    def lost(self, error: str, request_id: str = "") -> Self:
        """With one more request that brought no answer."""
        failure = f"the endpoint gave no answer: {error}"
        return self._with(Attempt(at=now(), error=error, request_id=request_id), failure=failure)

    def _with(self, attempt: Attempt, **changes: Any) -> Self:
        return self.model_copy(update={"attempts": (*self.attempts, attempt), **changes})


class Cache:
    """Conversations on any file system."""

    def __init__(self, root: str) -> None:
        self.filesystem, base = open_filesystem(root)
        self.folder = f"{base}/labels/llm"

    def recall(self, conversation: LLMExchange) -> LLMExchange:
        """The cached conversation, or `conversation` itself."""
        return self.find(conversation.key) or conversation

    def find(self, key: str) -> LLMExchange | None:
        """The conversation with this key, if it is kept.

        Raises:
            DataError: the file is damaged.
        """
        text = self.read(f"{key}.json")
        if text is None:
            return None
        try:
            return LLMExchange.model_validate_json(text)
        except ValidationError as error:
            path = f"{self.folder}/{key}.json"
            raise DataError(f"{path} is not a conversation with a language model: delete it to ask again") from error

    def keep(self, conversation: LLMExchange) -> None:
        self.write(f"{conversation.key}.json", conversation.model_dump_json(indent=1))

    def read(self, name: str) -> str | None:
        """The text of a file; None if there is none."""
        path = f"{self.folder}/{name}"
        if self.filesystem.get_file_info(path).type != fs.FileType.File:
            return None
        with self.filesystem.open_input_stream(path) as file:
            return file.read().decode()

    def write(self, name: str, text: str) -> None:
        write_file(self.filesystem, f"{self.folder}/{name}", text.encode())

    def names(self, folder: str) -> Sequence[str]:
        """Files in a folder of the cache, sorted, as `read` takes them."""
        selector = fs.FileSelector(f"{self.folder}/{folder}", allow_not_found=True)
        found = (info.base_name for info in self.filesystem.get_file_info(selector))
        return sorted(f"{folder}/{name}" for name in found if name.endswith(".json") and not name.startswith("."))
