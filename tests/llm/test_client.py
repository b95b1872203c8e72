"""The endpoint's client: what the environment gives it, and answers that other servers shape in their own way."""

import base64
import json
from typing import Any
from urllib.parse import quote

import pytest

from prospect.errors import ConfigError
from prospect.llm.asking import probe
from prospect.llm.client import Endpoint
from prospect.llm.errors import EndpointError, LostRequest
from tests.llm.conftest import AskingSettings
from tests.llm.misbehaving import KEY, KEY_VARIABLE, Hang, Reset, Status

MAPPING = '{"mapping": {"S1": ["B1"]}}'
OFFLINE = AskingSettings(base_url="http://127.0.0.1:9/v1", model="m", api_key_env="")
NO_PROXY = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NO_PROXY:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("content", "usage"),
    [
        (MAPPING, {"prompt_tokens": None, "completion_tokens": None}),
        (MAPPING, None),
        ([{"type": "text", "text": MAPPING}], {"prompt_tokens": 3}),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": MAPPING}],
            None,
        ),
        ([{"type": "text", "text": MAPPING[:9]}, {"type": "text", "text": MAPPING[9:]}], None),
        ([MAPPING], None),
    ],
)
def test_an_answer_in_parts_is_their_text(content: Any, usage: Any) -> None:
    completion = {"choices": [{"message": {"content": content}}], "usage": usage}
    answer = Endpoint(OFFLINE).answer(json.dumps(completion))
    assert answer.text == MAPPING
    assert answer.input_tokens == ((usage or {}).get("prompt_tokens") or 0)


@pytest.mark.parametrize("content", [17, {"text": MAPPING}, True])
def test_a_content_that_is_no_text_is_no_answer(content: Any) -> None:
    with pytest.raises(LostRequest, match="not a chat completion"):
        Endpoint(OFFLINE).answer({"choices": [{"message": {"content": content}}]})


@pytest.mark.parametrize("around", ["{}\n", "{}\r\n", "\n {}\t"])
def test_white_space_around_a_key_is_stripped(settings, monkeypatch, around: str) -> None:
    monkeypatch.setenv(KEY_VARIABLE, around.format(KEY))
    probe(settings)


@pytest.mark.parametrize("key", ["sk-live-1234\n5678", "sk-live-schlüssel", "sk live 12345678", "sk-live-\x00"])
def test_a_key_that_no_header_can_hold_is_refused_without_repeating_it(monkeypatch, key: str) -> None:
    if "\x00" in key:
        monkeypatch.setattr("os.environ", {KEY_VARIABLE: key})  # no environment can hold it either
    else:
        monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ConfigError, match=f"{KEY_VARIABLE} must hold a key of printable ASCII") as error:
        Endpoint(OFFLINE.model_copy(update={"api_key_env": KEY_VARIABLE}))
    assert "live" not in str(error.value)
    assert error.value.field == "tests.asking.api_key_env"


@pytest.mark.parametrize("blank", ["", " \n"])
def test_a_blank_key_is_missing(monkeypatch, blank: str) -> None:
    monkeypatch.setenv(KEY_VARIABLE, blank)
    with pytest.raises(ConfigError, match=f"{KEY_VARIABLE} is missing or blank"):
        Endpoint(OFFLINE.model_copy(update={"api_key_env": KEY_VARIABLE}))


def test_a_key_is_redacted_in_any_spelling(settings, monkeypatch) -> None:
    key = 'sk/live+"quoted"\\12345678'
    spelt = [key, json.dumps(key), repr(key), quote(key, safe=""), base64.b64encode(key.encode()).decode(), key.upper()]
    monkeypatch.setenv(KEY_VARIABLE, key)
    endpoint = Endpoint(settings)
    for text in spelt:
        assert "12345678" not in endpoint.clean(f"Incorrect API key provided: {text}.")
        assert "***" in endpoint.clean(f"Incorrect API key provided: {text}.")


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1080", r"ALL_PROXY names a SOCKS proxy.*httpx\[socks\]"),
        ("https_proxy", "socks5h://me:secret@proxy:1080", "https_proxy names a SOCKS proxy"),
        ("HTTPS_PROXY", "ftp://me:secret@proxy", "HTTPS_PROXY names a proxy that cannot be used; write http"),
        ("HTTP_PROXY", "http://me:secret@[::1", "HTTP_PROXY names a proxy that cannot be used"),
        ("SSL_CERT_FILE", "/nonexistent.pem", r"certificates of SSL_CERT_FILE cannot be read \(FileNotFoundError\)"),
        ("SSL_CERT_FILE", __file__, r"certificates of SSL_CERT_FILE cannot be read \(SSLError\)"),
    ],
)
def test_proxies_and_certificates_that_cannot_be_used_are_one_sentence(
    monkeypatch, variable: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=sentence) as error:
        Endpoint(OFFLINE)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_proxy_that_works_is_used(monkeypatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:3128")
    Endpoint(OFFLINE)


@pytest.mark.parametrize("trouble", [Status(503), Status(429, {"Retry-After": "0.01"}), Reset()])
def test_a_probe_outlives_a_passing_trouble(server, settings, trouble) -> None:
    server.plan["OK"] = [trouble, trouble]
    probe(settings)
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        (
            Status(404, error={"message": "no model `tiny`"}),
            r"\(model tiny\) answered HTTP 404 \(no model `tiny`\); check",
        ),
        (
            Status(400, error={"message": "temperature must be 1"}),
            r"HTTP 400 \(temperature must be 1\); check the settings",
        ),
        (Status(500), r"gave no answer: HTTP 500"),
        (Hang(), r"gave no answer: no answer within 0.2 s"),
    ],
)
def test_a_probe_says_in_one_sentence_what_does_not_work(server, settings, trouble, sentence: str) -> None:
    server.default = trouble
    with pytest.raises(EndpointError, match=sentence) as error:
        probe(settings.model_copy(update={"timeout_s": 0.2}))
    assert error.value.field == "tests.asking.base_url"
