"""Which language model maps annotation lines to steps, how it is asked, and what a token costs."""

import re
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, model_validator

from prospect.settings import Settings

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class LLMSettings(Settings):
    """An OpenAI-compatible endpoint. The key itself never stands here: only the variable that holds it."""

    model_config = ConfigDict(hide_input_in_errors=True)

    base_url: str = "https://api.openai.com/v1"
    """Where the endpoint lives, with its version: `http://gpu-7:8000/v1` for a vLLM server."""
    model: Annotated[str, Field(min_length=1)] = "gpt-4o"
    """The endpoint's name of the model."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; empty for an endpoint that asks for none."""
    mode: Literal["single", "batch"] = "single"
    """single: one chat completion at a time for each of `concurrency` videos. batch: the Batch API."""
    on_failure: Literal["quarantine", "aligner"] = "quarantine"
    """What happens to a video without a usable mapping: left out with its reason, or labelled by the aligner."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.1
    """None: not sent, for models that refuse it."""
    max_tokens: Annotated[int, Field(gt=0)] | None = 4096
    """Longest answer, in tokens; about 10 for each line. None: not sent, for models that refuse it."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request, as the endpoint wants them: `{max_completion_tokens: 8192}`."""

    max_retries: Count = 3
    """How often a video is asked again with what was wrong with the answer."""
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
    """So many videos in a row without any answer stop the run: the endpoint is down, not the videos bad."""
    concurrency: Annotated[int, Field(ge=1)] = 8
    """Videos asked about at the same time."""
    requests_per_minute: Positive | None = None
    """Requests are spaced evenly to stay below it; None: no limit but the endpoint's own."""

    batch_size: Annotated[int, Field(ge=1, le=50_000)] = 500
    """Videos in one batch."""
    poll_s: Positive = 60.0
    """Seconds between two looks at a batch."""

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

    def cost(self, input_tokens: int, output_tokens: int) -> float | None:
        """Price of so many tokens; None where a price is not given."""
        if self.price_input is None or self.price_output is None:
            return None
        return (input_tokens * self.price_input + output_tokens * self.price_output) / 1e6
