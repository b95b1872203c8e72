"""Which `Host` and `Origin` are answered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prospect.config.load import load
from prospect.errors import ConfigError
from prospect.serving.access.origins import OriginRules, is_loopback
from prospect.serving.config import ServeConfig

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,10}(\.[a-z]{2,5}){1,2}", fullmatch=True)
PORTS = st.integers(1, 65535)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LocalHost", None])
def test_what_only_this_machine_reaches(host: str | None) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "fe80::1", "example.com", "localhost.evil.com"])
def test_what_others_may_reach(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("bound", "hosts", "header", "allowed"),
    [
        ("127.0.0.1", [], "127.0.0.1:8000", True),
        ("127.0.0.1", [], "localhost", True),
        ("127.0.0.1", [], "[::1]:8000", True),
        ("127.0.0.1", [], "192.168.1.5:8000", False),
        ("192.168.1.5", [], "192.168.1.5:8000", True),
        ("192.168.1.5", [], "192.168.1.6", False),
        ("fd00::5", [], "[fd00::5]:8000", True),
        ("0.0.0.0", [], "192.168.1.5:8000", True),
        ("::", [], "[fd00::5]:8000", True),
        ("0.0.0.0", [], "camera.example.com", False),
        ("0.0.0.0", ["camera.example.com"], "Camera.Example.com:443", True),
        ("0.0.0.0", ["camera.example.com"], "evil.camera.example.com", False),
        ("127.0.0.1", ["*"], "anything.example.com", True),
        (None, [], "localhost:8000", True),
        (None, [], "testserver", False),
    ],
)
def test_hosts(bound: str | None, hosts: list[str], header: str, allowed: bool) -> None:
    assert OriginRules(bound, hosts).allows_host(header) is allowed


@given(name=NAMES, port=PORTS)
def test_a_name_that_an_attacker_owns_is_never_the_servers(name: str, port: int) -> None:
    """DNS rebinding: the name leads here, and the page's requests carry it."""
    for bound in ("127.0.0.1", "192.168.1.5", "0.0.0.0", None):
        rules = OriginRules(bound, ["camera.example.com"])
        assert rules.allows_host(f"{name}:{port}") is (name == "camera.example.com")


@pytest.mark.parametrize(
    "header", ["", ":8000", "localhost:", "localhost:x", "a@localhost", "localhost/evil.com", "[::1", "local host", "*"]
)
def test_a_malformed_host_is_refused_or_has_a_name(header: str) -> None:
    assert OriginRules("0.0.0.0").allows_host(header) is (header == "localhost:")


@given(name=NAMES, port=PORTS, scheme=st.sampled_from(["http", "https"]))
def test_a_page_of_another_server_may_not_and_its_own_may(name: str, port: int, scheme: str) -> None:
    rules = OriginRules("127.0.0.1")
    assert not rules.allows_origin(f"{scheme}://{name}:{port}", "127.0.0.1:8000")
    assert rules.allows_origin(f"{scheme}://{name}:{port}", f"{name}:{port}")
    assert rules.allows_origin(None, "127.0.0.1:8000"), "no page at all"


@pytest.mark.parametrize("origin", ["null", "", "127.0.0.1:8000", "file://", "chrome-extension://127.0.0.1:8000"])
def test_what_is_no_pages_origin_may_not(origin: str) -> None:
    assert not OriginRules("127.0.0.1").allows_origin(origin, "127.0.0.1:8000")


def test_pages_that_are_listed_may() -> None:
    rules = OriginRules("127.0.0.1", [], ["https://App.example.com", "http://localhost:3000"])
    assert rules.allows_origin("https://app.example.com", "127.0.0.1:8000")
    assert rules.allows_origin("http://localhost:3000", "127.0.0.1:8000")
    for other in ("http://app.example.com", "https://app.example.com.evil.com", "http://localhost:3001"):
        assert not rules.allows_origin(other, "127.0.0.1:8000")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("allowed_origins", "example.com"), ("allowed_origins", "*"), ("allowed_hosts", "https://example.com")],
)
def test_what_is_no_origin_or_host_is_refused_in_the_settings(setting: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"serving.{setting}"):
        load("serve", [f"serving.{setting}=['{value}']"], ServeConfig)
