"""Which language model maps annotation lines to steps, and how it is asked."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from prospect.llm.settings import EndpointSettings, Positive


class LLMSettings(EndpointSettings):
    """The endpoint that maps annotation lines to steps."""

    section: ClassVar[str] = "labels.llm"
    subjects: ClassVar[str] = "videos"

    model: Annotated[str, Field(min_length=1)] = "gpt-4o"
    """The endpoint's name of the model."""
    mode: Literal["single", "batch"] = "single"
    """single: one chat completion at a time for each of `concurrency` videos. batch: the Batch API."""
    on_failure: Literal["quarantine", "aligner"] = "quarantine"
    """What happens to a video without a usable mapping: left out with its reason, or labelled by the aligner."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.1
    """None: not sent, for models that refuse it."""
    max_tokens: Annotated[int, Field(gt=0)] | None = 4096
    """Longest answer, in tokens; about 10 for each line. None: not sent, for models that refuse it."""
    batch_size: Annotated[int, Field(ge=1, le=50_000)] = 500
    """Videos in one batch."""
    poll_s: Positive = 60.0
    """Seconds between two looks at a batch."""
