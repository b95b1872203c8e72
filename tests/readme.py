"""The examples of README.md and docs/, for the tests that run them."""

import re

from tests.conftest import REPOSITORY

PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text()
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
}
"""Texts by path."""
TEXT = PAGES["README.md"]


def blocks(language: str, section: str = "", text: str = TEXT) -> list[str]:
    """The code blocks of a language, of the section with this heading or of all."""
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    chosen = "\n".join(part for part in parts if part.startswith(section))
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", chosen, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def commands() -> list[str]:
    """Every line of the shell blocks, without comments and with continued lines joined."""
    code = "\n".join(blocks("sh")).replace("\\\n", " ")
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in code.splitlines())
    return [line for line in lines if line]


def job_commands(text: str) -> list[str]:
    """Every `python jobs/...`, in blocks and in sentences, without what is left open as `...`."""
    found = re.findall(r"python jobs/\w+\.py[^`\n#]*", text.replace("\\\n", " "))
    return [re.sub(r"\s*(\.\.\.|--help)?\s*$", "", command) for command in found]
