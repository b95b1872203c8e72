"""Parse messages of the session protocol; a mistake in one is an error that names the field."""

from collections.abc import Sequence

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from prospect.errors import SessionError
from prospect.messages import Finding, first_mistake
from prospect.protocol.messages import ClientMessage, ServerMessage

_CLIENT: TypeAdapter[ClientMessage] = TypeAdapter(ClientMessage)
_SERVER: TypeAdapter[ServerMessage] = TypeAdapter(ServerMessage)


def parse_client(data: str | bytes) -> ClientMessage:
    """A client's message out of its JSON.

    Raises:
        SessionError: one sentence that names the field.
    """
    try:
        return _CLIENT.validate_json(data)
    except ValidationError as error:
        raise message_error(error.errors(include_url=False), data) from None


def parse_server(data: str | bytes) -> ServerMessage:
    """A server's message out of its JSON.

    Raises:
        SessionError: the server speaks another protocol.
    """
    try:
        return _SERVER.validate_json(data)
    except ValidationError as error:
        raise message_error(error.errors(include_url=False), data) from None


def message_error(findings: Sequence[Finding], data: str | bytes | None = None) -> SessionError:
    """The first of pydantic's findings, in `data` where they are from a whole JSON text, as an error."""
    if data is None or findings[0]["type"] == "json_invalid":
        mistake = first_mistake(findings)
    else:
        mistake = first_mistake(findings, from_json(data))
    return SessionError(mistake.about(mistake.field or "message"), field=mistake.field or None)
