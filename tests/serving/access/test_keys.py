"""What a key looks like, and which secrets are its own."""

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prospect.errors import ConfigError
from prospect.serving.access import keys
from prospect.serving.access.keys import digest_of, is_secret_of, new_key, split_key


def test_a_new_key_is_recognised_and_no_other_secret_is() -> None:
    key, row = new_key("tablet")
    key_id, secret = split_key(key) or ("", "")
    assert (key_id, row.name, row.revoked) == (row.key_id, "tablet", None)
    assert is_secret_of(row, secret)
    assert len(secret) == 43, "256 bits"
    for wrong in ("", secret[:-1], secret + "A", row.digest, new_key("tablet")[0]):
        assert not is_secret_of(row, wrong)
    assert not is_secret_of(None, secret)
    assert key not in repr(row)


def test_secrets_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda *both: compared.append(both) or both[0] == both[1])
    row = new_key("tablet")[1]
    is_secret_of(row, "x")
    is_secret_of(None, "x")
    assert compared == [(digest_of("x"), row.digest), (digest_of("x"), "")]
    assert hmac.compare_digest is keys.hmac.compare_digest


@given(st.text(max_size=80))
def test_whatever_is_sent_as_a_key_is_looked_at(text: str) -> None:
    assert split_key(text) is None


@pytest.mark.parametrize("name", ["", "x" * 101, "two\nlines", "bell\x07"])
def test_a_name_that_would_break_a_list_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"NAME .* must have 1 to 100 characters"):
        new_key(name)
