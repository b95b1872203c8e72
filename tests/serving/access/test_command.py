"""`prospect keys`: what is printed, and every mistake in one line."""

from pathlib import Path

import pytest

from prospect.cli import main
from prospect.serving.access.keys import is_secret_of, split_key
from prospect.serving.store import KeyTable


@pytest.fixture
def keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs the command; returns exit status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["keys", *arguments, f"storage.root={tmp_path}"])
        return (left.value.code, *capsys.readouterr())

    return run


def test_a_key_from_its_making_to_its_end(keys, tmp_path: Path) -> None:
    status, printed, said = keys("add", "the kitchen's tablet")
    key = printed.strip()
    key_id, secret = split_key(key) or ("", "")
    assert (status, printed) == (0, f"{key}\n"), "KEY=$(prospect keys add NAME) works"
    assert secret not in said
    [row] = KeyTable(f"sqlite:///{tmp_path}/sessions.db").rows()
    assert is_secret_of(row, secret)

    status, printed, _ = keys("list")
    assert (status, secret in printed) == (0, False)
    assert f"{key_id}  " in printed
    assert "the kitchen's tablet" in printed

    status, printed, said = keys("revoke", key)
    assert (status, printed, said) == (0, "", f"key {key_id} is revoked\n"), "the whole key says which"
    status, _, said = keys("revoke", key)
    assert (status, secret in said) == (2, False)
    assert said.startswith(f"error: ID ({key_id}) must be that of a key that is not revoked")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ad", "x"], "Unknown command `ad` of `prospect keys` (did you mean `add`?)"),
        (["add"], "NAME is missing: prospect keys add NAME"),
        (["revoke"], "ID is missing: prospect keys revoke ID"),
        (["add", ""], "NAME ('') must have 1 to 100 characters"),
        (["list", "serving.stor=x"], "`serving.stor`: unknown field"),
    ],
)
def test_a_mistake_is_one_line(keys, arguments: list[str], says: str) -> None:
    status, printed, said = keys(*arguments)
    assert (status, printed) == (2, "")
    assert said.startswith(f"error: {says}")
    assert said.count("\n") == 1


def test_help_says_how(keys) -> None:
    status, printed, _ = keys("--help")
    assert status == 0
    assert printed.startswith("usage: prospect keys add NAME | list | revoke ID")
