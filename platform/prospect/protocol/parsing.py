"""Parse messages of the session protocol, with one sentence for each mistake in one."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from prospect.errors import SessionError
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
        findings: list[Any] = error.errors(include_url=False)
        tagged = "union_tag" in findings[0]["type"] or findings[0]["type"] == "json_invalid"
        raise mistake(findings, skip=0 if tagged else 1) from None


def parse_server(data: str | bytes) -> ServerMessage:
    """A server's message out of its JSON.

    Raises:
        SessionError: the server speaks another protocol.
    """
    try:
        return _SERVER.validate_json(data)
    except ValidationError as error:
        raise mistake(error.errors(include_url=False)) from None


def mistake(findings: Sequence[Mapping[str, Any]], skip: int = 0) -> SessionError:
    """The first of pydantic's findings as one sentence.

    Args:
        findings: from `ValidationError.errors`.
        skip: leading parts of the location that are no field, such as a union's tag.
    """
    first = findings[0]
    field = ".".join(map(str, first["loc"][skip:])) if first["type"] != "json_invalid" else ""
    rest = f" ({len(findings) - 1} more mistakes after it)" if len(findings) > 1 else ""
    if "union_tag" in first["type"]:
        field = "type"
    return SessionError(f"{field or 'message'}: {_finding(first)}{rest}", field=field or None)


def _finding(finding: Mapping[str, Any]) -> str:
    context = finding.get("ctx", {})
    match finding["type"]:
        case "json_invalid":
            return f"is not JSON: {context['error']}"
        case "union_tag_not_found":
            return "is missing; say which message this is"
        case "union_tag_invalid":
            return f"{context['tag']!r} must be one of {context['expected_tags']}"
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return "unknown field"
        case "value_error":
            return finding["msg"].removeprefix("Value error, ")
    shown = repr(finding["input"])
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f"{finding['msg'][:1].lower()}{finding['msg'][1:]}, not {shown}"
