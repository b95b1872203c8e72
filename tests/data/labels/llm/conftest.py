"""The endpoint that the tests ask, and settings that know its address."""

from collections.abc import Iterator

import pytest

from prospect.data.labels.llm.settings import LLMSettings
from tests.data.labels.llm.videos import right_answer
from tests.llm.misbehaving import KEY, KEY_VARIABLE, FakeEndpoint, reaching, serve


@pytest.fixture
def server() -> Iterator[FakeEndpoint]:
    with serve(right_answer) as endpoint:
        yield endpoint


@pytest.fixture
def settings(server, monkeypatch) -> LLMSettings:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    return LLMSettings(
        **reaching(server),
        poll_s=0.01,
        price_input=2.0,
        price_output=8.0,
    )
