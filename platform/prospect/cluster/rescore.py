"""Score saved predictions again by other rules, without the model."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prospect.cluster.common import ReportLine
from prospect.cluster.evaluation_result import EvaluationResult, record_result, score_predictions
from prospect.cluster.stream_views import MODEL
from prospect.config.schema import Config
from prospect.errors import ConfigError, DataError
from prospect.evaluation.judge import require_judge
from prospect.evaluation.lineage import Lineage, counted, scoring_rules
from prospect.evaluation.pace_record import PaceReport
from prospect.evaluation.predictions import SUFFIX, load_predictions, predictions_file
from prospect.evaluation.sweep import Curves, Decides, Point
from prospect.hashing import fingerprint
from prospect.messages import first_line
from prospect.settings import is_given
from prospect.similarity import SentenceSimilarity

_FIXED = ("model", "split", "allow_seen", "also", "sweep", "paced")
"""Settings of `evaluation` that predictions have by now."""

_NOT_OF_CURVES = ("judge", "bootstrap_samples", "confidence", "seed")
"""Rules that threshold curves do not depend on."""


def rescore(config: Config, report: ReportLine = print) -> EvaluationResult:
    """Score saved predictions by the rules of `config.evaluation`; other rules give another result.

    Nothing is streamed or promoted, and the training run keeps the scores that it has. Measured times of a
    latency-aware run are kept, and threshold curves where they were scored by the same rules.

    Args:
        config: sections storage, evaluation and tracking, and `rescore`.
        report: takes one line of progress at a time.

    Raises:
        DataError: the predictions cannot be read, or the measured times of a latency-aware run are missing.
        ConfigError: a setting is given that predictions have by now, the sentence encoder is missing, or see
            `require_judge`.
        EndpointError: the judge does not answer.
    """
    assert config.rescore is not None
    for name in _FIXED:
        if is_given(config, f"evaluation.{name}"):
            raise ConfigError(
                f"`evaluation.{name}` must not be set beside rescore: the predictions have theirs.",
                field=f"evaluation.{name}",
            )
    file = predictions_file(config.rescore) if config.rescore.suffix == ".json" else config.rescore
    saved, root = load_predictions(file), Path(config.storage.root)
    if config.evaluation.judge is not None:
        require_judge(config.evaluation.judge, saved.systems, report)
    earlier = _earlier_result(file)
    paced, sweep = _measured_times(file, saved.lineage, earlier), _curves(earlier)
    encoder = SentenceSimilarity(config.evaluation.similarity, cache=root / "cache" / "sentences")
    streamed = {name: saved.lineage.rules.get("evaluation", {}).get(name, ()) for name in ("also", "sweep")}
    settings = config.evaluation.model_copy(update={name: tuple(value) for name, value in streamed.items()})
    rules = {**saved.lineage.rules, **scoring_rules(settings, encoder.identity, saved.datasets)}
    if settings.sweep and not (sweep and _same_curves(saved.lineage.rules, rules)):
        report("eval   without threshold curves: those of the predictions are of other rules, and need the model")
        settings, sweep = settings.model_copy(update={"sweep": ()}), {}
        rules = {**rules, **scoring_rules(settings, encoder.identity, saved.datasets)}
    predictions = replace(saved, lineage=replace(saved.lineage, rules=rules))
    lineage = predictions.lineage
    report(f"eval   {lineage.model} as it was streamed: {counted(lineage.dialogues, 'dialogue')} of {lineage.count}")
    result = score_predictions(predictions, settings, encoder, root, report, sweep, paced)
    from prospect.tracking.tracking import Tracking  # with MLflow

    record_result(Tracking(config.tracking, root), result, rescored=True)
    report(f"eval   written to {result.file}" + (f", page {result.page}" if result.page else ""))
    return result


def _earlier_result(file: Path) -> Mapping[str, Any]:
    """The result beside predictions; empty where there is none."""
    result = _result_file(file)
    try:
        values: dict[str, Any] = json.loads(result.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"`rescore` ({result}): unreadable ({first_line(error)})", field="rescore") from error
    return values


def _result_file(file: Path) -> Path:
    return file.with_name(file.name.removesuffix(SUFFIX) + ".json")


def _measured_times(file: Path, lineage: Lineage, earlier: Mapping[str, Any]) -> PaceReport | None:
    """Of the latency-aware run that the predictions are of.

    Raises:
        DataError: they are of one, and its times are missing.
    """
    if lineage.paced is None:
        return None
    if not earlier.get("paced"):
        raise DataError(
            f"`rescore` ({file}): the measured times of the latency-aware run are missing, which "
            f"{_result_file(file).name} holds; put it beside the predictions",
            field="rescore",
        )
    return PaceReport(earlier["paced"], earlier["fast_share"])


def _curves(earlier: Mapping[str, Any]) -> dict[Decides, Curves]:
    """Curves over the thresholds; empty where nothing was streamed for them."""
    found = earlier["scores"][MODEL]["curves"].get("sweep", {}) if earlier else {}
    return {
        name: {dataset: [Point(**point) for point in points] for dataset, points in curves.items()}
        for name, curves in found.items()
    }


def _same_curves(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether two rules give the same threshold curves."""

    def decisive(rules: Mapping[str, Any]) -> str:
        scored = {name: value for name, value in rules.get("evaluation", {}).items() if name not in _NOT_OF_CURVES}
        return fingerprint([scored, rules.get("encoder"), rules.get("windows")])

    return decisive(before) == decisive(after)
