"""The endpoint that the tests ask, and settings that know its address."""

import threading
from collections.abc import Iterator

import pytest

from prospect.data.labels.llm.settings import LLMSettings
from tests.data.labels.llm.misbehaving import KEY, KEY_VARIABLE, FakeEndpoint


@pytest.fixture
def server() -> Iterator[FakeEndpoint]:
    endpoint = FakeEndpoint()
    thread = threading.Thread(target=endpoint.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield endpoint
    endpoint.close()
    thread.join()


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
