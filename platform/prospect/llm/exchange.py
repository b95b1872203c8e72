"""One conversation with a language model: what is asked, every answer, and what was wrong with it."""

from abc import abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

from prospect.dialogue.schema import Record
from prospect.llm.settings import EndpointSettings, Message


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def one_line(text: str) -> str:
    """Text of a record as a prompt quotes it, where each line means something."""
    return " ".join(text.split())


class CachedAnswer(Record):
    """One chat completion, as far as it is used."""

    text: str
    finish_reason: str = ""
    model: str = ""
    """The model that the endpoint says it used."""
    input_tokens: int = 0
    output_tokens: int = 0


class AnswerFailure(Record):
    """One fault of an answer."""

    kind: str
    """Counted in reports: `json`, `structure`, `missing` ..."""
    feedback: str
    """One sentence, told to the model."""


class InvalidAnswer(Exception):  # noqa: N818 - the answer is at fault, not the program
    """An answer that cannot be used; `failures` is never empty."""

    def __init__(self, *failures: AnswerFailure) -> None:
        super().__init__(" ".join(failure.feedback for failure in failures))
        self.failures = failures

    @classmethod
    def of(cls, kind: str, feedback: str) -> Self:
        return cls(AnswerFailure(kind=kind, feedback=feedback))


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


class Exchange(Record):
    """A conversation that ends with a usable answer, or after too many others. Subclasses say what is usable."""

    wanted: ClassVar[str]
    """What an answer should be, such as `mapping`."""
    reminder: ClassVar[str]
    """How to answer, said again after a wrong answer."""

    key: str
    """Hash of everything that an answer depends on."""
    model: str
    prompt_hash: str
    messages: tuple[Message, ...]
    attempts: tuple[Attempt, ...] = ()
    failure: str = ""
    """Why there is no usable answer; empty while one may still come."""

    @property
    @abstractmethod
    def answered_well(self) -> bool:
        """Whether a usable answer was found."""

    @abstractmethod
    def _read(self, answer: CachedAnswer) -> dict[str, Any]:
        """The fields that a usable answer sets.

        Raises:
            InvalidAnswer: it is not usable.
        """

    @property
    def invalid(self) -> tuple[Attempt, ...]:
        """Attempts whose answer was not usable."""
        return tuple(attempt for attempt in self.attempts if attempt.failures)

    def finished(self, max_retries: int) -> bool:
        """Whether it is settled. Requests without an answer do not count: the next run asks again."""
        return self.answered_well or len(self.invalid) > max_retries

    def body(self, settings: EndpointSettings) -> dict[str, Any]:
        """The next request: the conversation so far, with each wrong answer and what was wrong with it."""
        messages = [*self.messages]
        for attempt in self.invalid:
            if attempt.answer is not None:
                messages += self._correction(attempt.answer.text, [failure.feedback for failure in attempt.failures])
        return settings.body(messages)

    def _correction(self, answer: str, feedback: Sequence[str]) -> tuple[Message, Message]:
        complaint = f"This {self.wanted} cannot be used. {' '.join(feedback)} {self.reminder}"
        return {"role": "assistant", "content": answer or "(no answer)"}, {"role": "user", "content": complaint}

    def answered(self, answer: CachedAnswer, request_id: str = "") -> Self:
        """With one more answer, judged."""
        try:
            found = self._read(answer)
        except InvalidAnswer as invalid:
            number = len(self.invalid) + 1
            failure = f"{number} answers were no {self.wanted}, the last because: {invalid}"
            attempt = Attempt(at=now(), answer=answer, failures=invalid.failures, request_id=request_id)
            return self._with(attempt, failure=failure)
        return self._with(Attempt(at=now(), answer=answer, request_id=request_id), failure="", **found)

    def lost(self, error: str, request_id: str = "") -> Self:
        """With one more request that brought no answer."""
        failure = f"the endpoint gave no answer: {error}"
        return self._with(Attempt(at=now(), error=error, request_id=request_id), failure=failure)

    def _with(self, attempt: Attempt, **changes: Any) -> Self:
        return self.model_copy(update={"attempts": (*self.attempts, attempt), **changes})
