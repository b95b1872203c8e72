"""The endpoint that the tests ask, and settings that know its address."""

from collections.abc import Iterator

import pytest

from prospect.data.labels.llm.settings import LLMSettings
from tests.data.labels.llm.videos import right_answer
from tests.llm.misbehaving import KEY, KEY_VARIABLE, FakeEndpoint, serve


@pytest.fixture
def server() -> Iterator[FakeEndpoint]:
    with serve(right_answer) as endpoint:
        yield endpoint


@pytest.fixture
def settings(server, monkeypatch) -> LLMSettings:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    return LLMSettings(
        base_url=server.base_url,
        model="tiny",
        api_key_env=KEY_VARIABLE,
        timeout_s=5,
        transport_retries=2,
        backoff_s=0.01,
        poll_s=0.01,
        price_input=2.0,
        price_output=8.0,
    )
