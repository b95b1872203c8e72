"""`prospect keys`: make, list and revoke the API keys of a served application."""

import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from prospect.config.load import load
from prospect.errors import ConfigError, ProspectError
from prospect.messages import unknown
from prospect.serving.access.keys import new_key, split_key
from prospect.serving.config import ServeConfig
from prospect.serving.requirements import store_url
from prospect.serving.store import KeyTable

USAGE = """usage: prospect keys add NAME | list | revoke ID [SECTION.KEY=VALUE] ...

add     Make a key for NAME and print it: it is shown this once, and kept nowhere.
list    Print id, name and age of each key.
revoke  Revoke the key of an id. Servers refuse it within a few seconds, and cut off its streams.

The keys lie in the session store, serving.store, by default an SQLite file under storage.root: give the same overrides
as to the server."""


def main(arguments: Sequence[str]) -> int:
    """Exit status 0, or 2 after one line on stderr."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    try:
        command, operands, overrides = _parsed(arguments)
        table = KeyTable(store_url(load("serve", overrides, ServeConfig)))
        try:
            command(table, *operands)
        finally:
            table.close()
    except ProspectError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parsed(arguments: Sequence[str]) -> tuple[Callable[..., None], list[str], list[str]]:
    """The command, its operands and the overrides behind them.

    Raises:
        ConfigError: there is no such command, or it lacks its operand.
    """
    commands: dict[str, tuple[Callable[..., None], list[str]]] = {
        "add": (_add, ["NAME"]),
        "list": (_list, []),
        "revoke": (_revoke, ["ID"]),
    }
    name, *rest = arguments
    if name not in commands:
        raise ConfigError(unknown("command", name, commands, of="prospect keys"), field="keys")
    command, operands = commands[name]
    given, overrides = rest[: len(operands)], rest[len(operands) :]
    if len(given) < len(operands) or any("=" in each for each in given):
        raise ConfigError(f"{operands[0]} is missing: prospect keys {name} {operands[0]}", field=operands[0])
    return command, given, overrides


def _add(table: KeyTable, name: str) -> None:
    key, row = new_key(name)
    table.add(row)
    print(key)
    print(f"key {row.key_id} of {name}: shown this once; clients read it from PROSPECT_API_KEY", file=sys.stderr)


def _list(table: KeyTable) -> None:
    print(f"{'id':12}  {'made':16}  {'revoked':16}  name")
    for row in table.rows():
        print(f"{row.key_id:12}  {_day(row.created):16}  {_day(row.revoked):16}  {row.name}")


def _revoke(table: KeyTable, given: str) -> None:
    key_id = (split_key(given) or (given, ""))[0]  # of whoever gives the whole key
    if not table.revoke(key_id, time.time()):
        message = f"ID ({key_id}) must be that of a key that is not revoked: `prospect keys list` names them"
        raise ConfigError(message, field="ID")
    print(f"key {key_id} is revoked", file=sys.stderr)


def _day(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
