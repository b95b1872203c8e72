"""What was asked of an endpoint: requests, tokens, their price, and failures by kind."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from prospect.llm.exchange import Attempt
from prospect.llm.settings import EndpointSettings


@dataclass(frozen=True)
class Usage:
    """Requests, tokens and their price."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    """In the currency of the settings' prices; None where they are not given."""

    @classmethod
    def of(cls, attempts: Iterable[Attempt], settings: EndpointSettings) -> "Usage":
        attempts = [*attempts]
        answers = [attempt.answer for attempt in attempts if attempt.answer is not None]
        tokens = sum(answer.input_tokens for answer in answers), sum(answer.output_tokens for answer in answers)
        return cls(len(attempts), *tokens, settings.cost(*tokens))

    def __str__(self) -> str:
        tokens = f"{self.input_tokens:,} input and {self.output_tokens:,} output tokens"
        return f"{self.requests:,} request{'' if self.requests == 1 else 's'}, {tokens}, cost {self.price}"

    @property
    def price(self) -> str:
        """The cost as tables show it."""
        return "unknown" if self.cost is None else f"{self.cost:,.4f}"


def failure_kinds(attempts: Iterable[Attempt]) -> Counter[str]:
    """How many attempts failed in each way: the kinds of the answers' failures, and `no answer`."""
    kinds: Counter[str] = Counter()
    for attempt in attempts:
        kinds.update({failure.kind for failure in attempt.failures})
        kinds.update(["no answer"] if attempt.error else [])
    return kinds
