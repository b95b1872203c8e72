"""Compare two evaluations that there are, from their saved predictions; needs no model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prospect.cluster.common import ReportLine
from prospect.config.schema import Config
from prospect.errors import ConfigError, DataError
from prospect.evaluation.comparison import Comparison, compare
from prospect.evaluation.decision_cache import hash_model
from prospect.evaluation.predictions import SUFFIX, load_predictions, predictions_file
from prospect.evaluation.settings import EvaluationSettings
from prospect.messages import first_line, unknown
from prospect.model.saved import MANIFEST, read_saved
from prospect.reports.evaluation.comparison import comparison_table, write_comparison
from prospect.similarity import SentenceSimilarity
from prospect.terminal import console

_STREAMED_BY = ("context", "streaming", "encoder")
"""Rules of a result beside those of `evaluation`; thresholds are the model's own."""


@dataclass(frozen=True)
class StoredResult:
    """A result of an evaluation on disk."""

    file: Path
    lineage: Mapping[str, Any]

    @property
    def rules(self) -> Mapping[str, Any]:
        """By which it was scored."""
        return self.lineage["rules"]["evaluation"]


def compare_and_show(config: Config, report: ReportLine = print) -> None:
    """Run `compare_results` and print its table."""
    comparison, page = compare_results(config, report)
    console(100).print(comparison_table(comparison))
    report(f"eval   written to {page}")


def compare_results(config: Config, report: ReportLine = print) -> tuple[Comparison, Path]:
    """Compare the two results that `config.compare` names, by the rules of the first.

    Of several results of a run or model, the newest two are taken of those of the same data, pace, rules, context and
    engine.

    Args:
        config: sections storage and tracking, `evaluation.similarity`, and `compare`.
        report: takes one line of progress at a time.

    Returns:
        The comparison, and its HTML page beside the first result.

    Raises:
        ConfigError: a name is unknown, or the sentence encoder is missing.
        DataError: the results are of different data, or one has no predictions beside it.
    """
    assert config.compare is not None
    found = [sorted(_results(config, name), key=_age) for name in config.compare]
    first, second = _newest_pair(*found)
    before, after = (load_predictions(_predictions(result)) for result in (first, second))
    settings = _rules(first)
    root = Path(config.storage.root)
    encoder = SentenceSimilarity(config.evaluation.similarity, cache=root / "cache" / "sentences")
    known = first.lineage["rules"].get("encoder") or {}
    if known.get("hash") != encoder.identity["hash"]:
        report(
            f"eval   ATTENTION: both are compared by {encoder.identity['name']}, and {first.file.name} was scored by "
            f"{known.get('name', 'an encoder that it does not name')}; evaluation.similarity chooses another"
        )
    comparison = compare(before, after, settings, encoder)
    file = first.file.with_name(f"{first.file.stem}-vs-{second.file.parent.name}-{after.lineage.key}.html")
    return comparison, write_comparison(file, comparison, settings.bootstrap_samples)


def _results(config: Config, name: str) -> list[StoredResult]:
    """The results that a file, a run's name or a model names.

    Raises:
        ConfigError: there are none.
    """
    path, folder = Path(name).expanduser(), Path(config.storage.root) / "evaluations"
    if path.is_file():
        return [_read(path.with_name(path.name.removesuffix(SUFFIX) + ".json") if name.endswith(SUFFIX) else path)]
    if name in _runs(folder):
        found = [_read(file) for file in (folder / name).glob("*.json")]
    elif name.startswith("models:/") or (path / MANIFEST).is_file():
        from prospect.tracking.tracking import Tracking  # with MLflow

        saved = read_saved(Tracking(config.tracking, Path(config.storage.root)).resolve(name))
        weights, run = hash_model(saved.folder), str(saved.manifest["run_name"])
        found = [
            result for file in (folder / run).glob("*.json") if (result := _read(file)).lineage["weights"] == weights
        ]
    else:
        raise ConfigError(
            f"{unknown('result', name, _runs(folder), of='compare', most=5)} Give a run, a file or a model.",
            field="compare",
        )
    if not found:
        raise ConfigError(f"`compare` ({name}) has no result in {folder}; evaluate it first.", field="compare")
    return found


def _runs(folder: Path) -> list[str]:
    """Names of the runs that have results."""
    return [each.name for each in folder.iterdir() if each.is_dir()] if folder.is_dir() else []


def _read(file: Path) -> StoredResult:
    try:
        return StoredResult(file, json.loads(file.read_text())["lineage"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"`compare` ({file}): not a result of an evaluation ({first_line(error)})", field="compare"
        ) from error


def _age(result: StoredResult) -> float:
    """Newest first."""
    return -result.file.stat().st_mtime


def _newest_pair(first: list[StoredResult], second: list[StoredResult]) -> tuple[StoredResult, StoredResult]:
    """The newest of the pairs that are most alike: see `_likeness`."""
    pairs = [(a, b) for a, b in product(first, second) if a.file != b.file] or [(first[0], second[0])]
    return max(pairs, key=lambda pair: _likeness(*pair))  # the first of equals


def _likeness(first: StoredResult, second: StoredResult) -> tuple[bool, ...]:
    """What two results share, the most important first; of equals, two without a pace are more alike."""
    paces = [result.lineage.get("paced") for result in (first, second)]
    return (
        first.lineage["records"] == second.lineage["records"],
        paces[0] == paces[1],
        first.rules == second.rules,
        *(first.lineage["rules"].get(name) == second.lineage["rules"].get(name) for name in _STREAMED_BY),
        paces == [None, None],
    )


def _predictions(result: StoredResult) -> Path:
    file = predictions_file(result.file)
    if not file.is_file():
        raise DataError(
            f"`compare` ({result.file}): has no predictions beside it, as an earlier version wrote it; evaluate again",
            field="compare",
        )
    return file


def _rules(result: StoredResult) -> EvaluationSettings:
    try:
        rules = {name: value for name, value in result.rules.items() if name != "judge"}
        return EvaluationSettings.model_validate(rules)
    except (ValidationError, KeyError) as error:
        raise DataError(
            f"`compare` ({result.file}): its rules are another version's ({first_line(error)}); score it again with "
            "rescore=FILE",
            field="compare",
        ) from error
