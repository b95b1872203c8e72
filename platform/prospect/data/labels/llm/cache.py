"""The conversation about one video's mapping, kept as `<root>/labels/llm/<key>.json`."""

from typing import Any, ClassVar, Self

from prospect.data.labels.llm.prompt import REMINDER, MappingRequest, opening
from prospect.data.labels.llm.settings import LLMSettings
from prospect.data.labels.llm.validators import read_mapping
from prospect.hashing import fingerprint
from prospect.llm.cache import Cache
from prospect.llm.exchange import CachedAnswer, Exchange

FOLDER = "labels/llm"
"""Below the storage root."""


class LLMExchange(Exchange):
    """Everything about one video's mapping."""

    wanted: ClassVar[str] = "mapping"
    reminder: ClassVar[str] = REMINDER

    num_steps: int
    num_blocks: int
    assignment: tuple[int, ...] | None = None
    """Step index of each block, once an answer was right."""

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
    def answered_well(self) -> bool:
        return self.assignment is not None

    def _read(self, answer: CachedAnswer) -> dict[str, Any]:
        return {"assignment": read_mapping(answer.text, self.num_steps, self.num_blocks, answer.finish_reason)}


def mapping_cache(root: str) -> Cache[LLMExchange]:
    """The conversations below a storage root."""
    return Cache(root, FOLDER, LLMExchange)
