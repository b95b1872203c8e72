"""The licence of a base model, as its own files state it."""

from pathlib import Path

import yaml
from huggingface_hub import try_to_load_from_cache

UNKNOWN = "unknown"
NO_BASE = "none: trained from scratch"

_CARD = "README.md"
_MOST = 80
"""Characters of a licence file's first line that are told."""


def licence_of_base(base: str, cache: Path) -> str:
    """The licence of a base by its name in `model.base`; `unknown` where its folder does not say.

    Read are the head of README.md (`license:`, or `license_name:` where that is `other`), else the first line of a
    LICENSE file. Of a model of the hub the files on this machine are read; nothing is asked of the hub.

    Args:
        base: name or folder of the base.
        cache: folder of converted packaged weights.
    """
    if base.partition(":")[0] == "tiny":
        return NO_BASE
    folder = cache / base.removeprefix("package:") if base.startswith("package:") else Path(base)
    if folder.is_dir():
        return licence_in(folder)
    try:
        found = try_to_load_from_cache(base, _CARD)
    except ValueError:  # no name that the hub takes
        return UNKNOWN
    return licence_in(Path(found).parent) if isinstance(found, str) else UNKNOWN


def licence_in(folder: Path) -> str:
    """What the files of a model's folder say."""
    try:
        text = (folder / _CARD).read_text(errors="replace")
        head = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else {}
        name = head.get("license")
        if name and (told := head.get("license_name") if name == "other" else name):
            return str(told)
    except (OSError, yaml.YAMLError, AttributeError, IndexError):
        pass
    for file in sorted(folder.glob("LICEN[SC]E*")):
        lines = (line.strip() for line in file.read_text(errors="replace").splitlines())
        return next((line[:_MOST] for line in lines if line), UNKNOWN)
    return UNKNOWN
