"""An OpenAI-compatible endpoint: where it is, how it is asked, and what a token costs."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, model_validator

from prospect.settings import Settings

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]

Message = dict[str, str]
"""`role` and `content`, as the wire has them."""


class EndpointSettings(Settings):
    """An OpenAI-compatible endpoint. The key itself never stands here: only the variable that holds it."""

    model_config = ConfigDict(hide_input_in_errors=True)

    section: ClassVar[str]
    """Dotted name of these settings in the configuration, for the sentences of mistakes."""
    subjects: ClassVar[str]
    """What the endpoint is asked about, such as `videos`."""

    base_url: str = "https://api.openai.com/v1"
    """Where the endpoint lives, with its version: `http://gpu-7:8000/v1` for a vLLM server."""
    model: Annotated[str, Field(min_length=1)]
    """The endpoint's name of the model."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; empty for an endpoint that asks for none."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None
    """None: not sent, for models that refuse it."""
    max_tokens: Annotated[int, Field(gt=0)] | None
    """Longest answer, in tokens. None: not sent, for models that refuse it."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request, as the endpoint wants them: `{max_completion_tokens: 8192}`."""

    max_retries: Count = 3
    """How often the endpoint is asked again with what was wrong with its answer."""
    transport_retries: Count = 5
    """How often a request that brought no answer (429, 5xx, time-out, lost connection) is sent again; a 429
    does not count while the endpoint answers others."""
    backoff_s: Positive = 1.0
    """Seconds before the first such repetition; doubles each time up to 60. A `Retry-After` takes its place."""
    max_wait_s: Positive = 600.0
    """The longest `Retry-After` that is waited for, in seconds; a longer one stops the run."""
    timeout_s: Positive = 120.0
    """Seconds from a request to the end of its answer."""
    stop_after: Annotated[int, Field(ge=1)] = 20
    """So many conversations in a row without any answer stop the run: the endpoint is down, not its subjects bad."""
    concurrency: Annotated[int, Field(ge=1)] = 8
    """Requests under way at the same time."""
    requests_per_minute: Positive | None = None
    """Requests are spaced evenly to stay below it; None: no limit but the endpoint's own."""

    price_input: Annotated[float, Field(ge=0)] | None = None
    """Price of a million input tokens, in any currency (the Batch API often has its own); None: cost unknown."""
    price_output: Annotated[float, Field(ge=0)] | None = None
    """Price of a million output tokens."""

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        """Checked on the whole section: a field's own error would repeat its value, which may be a key."""
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("`base_url` must be an http or https address")
        if url.username or url.password or url.query:
            raise ValueError("`base_url` must not hold credentials; put the key into the variable of `api_key_env`")
        if not re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)?", self.api_key_env):
            raise ValueError("`api_key_env` must be the name of an environment variable, not a key")
        return self

    def body(self, messages: Sequence[Message]) -> dict[str, Any]:
        """A request for one chat completion, as the wire has it."""
        body: dict[str, Any] = {"model": self.model, "messages": [*messages]}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        return {**body, **self.extra_body}

    def cost(self, input_tokens: int, output_tokens: int) -> float | None:
        """Price of so many tokens; None where a price is not given."""
        if self.price_input is None or self.price_output is None:
            return None
        return (input_tokens * self.price_input + output_tokens * self.price_output) / 1e6
