"""An endpoint that answers anything, and settings that know its address."""

from collections.abc import Iterator
from typing import ClassVar

import pytest

from prospect.llm.settings import EndpointSettings
from tests.llm.misbehaving import KEY, KEY_VARIABLE, FakeEndpoint, serve


class AskingSettings(EndpointSettings):
    section: ClassVar[str] = "tests.asking"
    subjects: ClassVar[str] = "questions"

    temperature: float | None = None
    max_tokens: int | None = None


@pytest.fixture
def server() -> Iterator[FakeEndpoint]:
    with serve() as endpoint:
        yield endpoint


@pytest.fixture
def settings(server: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> AskingSettings:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    return AskingSettings(
        base_url=server.base_url,
        model="tiny",
        api_key_env=KEY_VARIABLE,
        timeout_s=5,
        transport_retries=2,
        backoff_s=0.01,
    )
