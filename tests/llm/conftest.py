"""An endpoint that answers anything, and settings that know its address."""

from collections.abc import Iterator
from typing import ClassVar

import pytest

from prospect.llm.settings import EndpointSettings
from tests.llm.misbehaving import KEY, KEY_VARIABLE, FakeEndpoint, reaching, serve


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
    return AskingSettings(**reaching(server))
