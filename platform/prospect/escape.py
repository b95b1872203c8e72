"""User text as a name in a grammar that takes less than any text; each name leads back to its text."""

import re
from urllib.parse import quote, unquote


def folder_name(text: str) -> str:
    """One folder's name for any text, such as `/Shared/kitchen` or `..`."""
    name = quote(text, safe=" ")
    return name.replace(".", "%2E") if not name.strip(".") else name


def folder_text(name: str) -> str:
    """The text of a `folder_name`."""
    return unquote(name)


def metric_part(text: str) -> str:
    """What stands between two slashes of a metric's name, or behind an underscore: letters, digits, ` -_.` and `:`.

    Any other character stands as its code between colons, `kitchen :28:2024:29:` for `kitchen (2024)`.
    """
    illegal = r"[^\w .-]|:" if text.strip(". ") else r"[^\w-]"
    return re.sub(illegal, lambda found: f":{ord(found[0]):x}:", text)


def metric_text(part: str) -> str:
    """The text of a `metric_part`."""
    return re.sub(":([0-9a-f]+):", lambda found: chr(int(found[1], 16)), part)
