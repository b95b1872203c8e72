"""What earlier versions wrote, read as it was meant: the defaults that later settings have for it.

A run, a model or a store keeps the settings of its time. A setting that it does not name did not exist yet, and what
the program did then is its value.
"""

from collections.abc import Mapping
from typing import Any

EARLIER_DEFAULTS: Mapping[str, Any] = {"context.layout": 1}
"""Dotted name of each setting that came later -> what the program did before."""


def with_earlier_defaults(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` of a section as it was saved, with the later settings that it does not name."""
    prefix = f"{section}."
    later = {name.removeprefix(prefix): value for name, value in EARLIER_DEFAULTS.items() if name.startswith(prefix)}
    return {**later, **values}
