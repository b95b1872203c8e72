"""JSON objects in the prose of a language model."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from prospect.llm.exchange import InvalidAnswer


class _RepeatedKeyError(ValueError):
    """A repeated key in an object, of which `json` would keep the last one alone."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if repeated:
        raise _RepeatedKeyError(repeated[0])
    return dict(pairs)


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs)


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """All JSON objects in a text, whatever stands around them; objects inside others are not repeated.

    Raises:
        InvalidAnswer: an object has a key twice.
    """
    position = text.find("{")
    while position >= 0:
        try:
            value, end = _DECODER.raw_decode(text, position)
        except _RepeatedKeyError as repeated:
            raise InvalidAnswer.of("duplicate", f"{repeated} appears twice as a key; each key once.") from repeated
        except (ValueError, RecursionError):
            end = position + 1
        else:
            yield value
        position = text.find("{", end)


def json_error(text: str) -> str:
    """Why a text has no JSON object that can be read."""
    start = text.find("{")
    if start < 0:
        return "there is no object in it"
    try:
        _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        return f"{error.msg} in line {error.lineno}, column {error.colno}"
    except RecursionError:
        return "it is nested too deeply"
    return "there is no object in it"
