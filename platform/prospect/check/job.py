"""The check job: look before anything is embedded, labelled or trained."""

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from prospect.check.config import CheckConfig
from prospect.check.source import SourceCheck, check_source
from prospect.data.sources import group_reasons
from prospect.errors import CheckpointError
from prospect.terminal import console

_SHOWN = 10
"""Reasons and names that are printed of each kind."""


def check(config: CheckConfig) -> None:
    """Print what a source holds; with `model=`, whether a base model computes what it does in transformers.

    Raises:
        ProspectError: see `check_source` and `compare_with_transformers`.
    """
    out = console(140)
    if config.model is not None:
        out.print(_agreement(config.model, Path(config.storage.root) / "cache"))
        return
    found = check_source(config)
    out.print(found.report)
    out.print(found.clips)
    for line in _remarks(found):
        out.print(f"check  {line}", soft_wrap=True)


def _agreement(model: str, cache: Path) -> Table:
    from prospect.check.weights import compare_with_transformers  # with torch

    table = Table("computed by", "largest difference of a log-probability", "same first choice", title=model)
    try:
        found = compare_with_transformers(model, cache)
    except CheckpointError as error:  # other jobs name a base in `model.base`
        raise CheckpointError(str(error).replace("`model.base`", "`model`"), field="model") from error
    for each in found:
        table.add_row(each.way, f"{each.largest:.1e}", f"{each.same_choice:.1%}")
    return table


def _remarks(found: SourceCheck) -> Iterator[str]:
    corpus = found.corpus
    yield f"videos with a file: {len(corpus.videos):,}; without: {len(corpus.missing_videos):,}"
    yield from (f"no file for {video!r}" for video in corpus.missing_videos[:_SHOWN] if video not in corpus.nearest)
    yield from (f"unreadable: {reason}" for reason in [*found.unreadable.values()][:_SHOWN])
    yield from found.report.remarks()
    for reason in group_reasons(found.clips.quarantined)[:_SHOWN]:
        yield f"not to be cut into clips: {reason}"
    if not found.clips.dialogues:
        yield "no dialogue is in the split `train`, so there is nothing to train on"
    yield "what is read and what is left out: docs/data.md"
