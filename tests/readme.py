"""README.md's examples, for the tests that run them."""

import re

from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "README.md").read_text()


def blocks(language: str, section: str = "") -> list[str]:
    """The code blocks of a language, of the section with this heading or of all."""
    parts = re.split(r"^## ", TEXT, flags=re.MULTILINE)
    chosen = "\n".join(part for part in parts if part.startswith(section))
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", chosen, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def commands() -> list[str]:
    """Every line of the shell blocks, without comments and with continued lines joined."""
    code = "\n".join(blocks("sh")).replace("\\\n", " ")
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in code.splitlines())
    return [line for line in lines if line]
