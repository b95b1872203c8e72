"""Score saved predictions again by other rules, without the model."""

from dataclasses import replace
from pathlib import Path

from prospect.cluster.common import ReportLine
from prospect.cluster.evaluation_result import EvaluationResult, record_result, score_predictions
from prospect.config.schema import Config
from prospect.errors import ConfigError
from prospect.evaluation.lineage import counted, scoring_rules
from prospect.evaluation.predictions import load_predictions, predictions_file
from prospect.settings import is_given
from prospect.similarity import SentenceSimilarity

_FIXED = ("model", "split", "allow_seen")
"""Settings of `evaluation` that predictions have by now."""


def rescore(config: Config, report: ReportLine = print) -> EvaluationResult:
    """Score saved predictions by the rules of `config.evaluation`; other rules give another result.

    Nothing is streamed or promoted, and the training run keeps the scores that it has.

    Args:
        config: sections storage, evaluation and tracking, and `rescore`.
        report: takes one line of progress at a time.

    Raises:
        DataError: the predictions cannot be read.
        ConfigError: a setting is given that predictions have by now, or the sentence encoder is missing.
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
    encoder = SentenceSimilarity(config.evaluation.similarity, cache=root / "cache" / "sentences")
    rules = {**saved.lineage.rules, **scoring_rules(config.evaluation, encoder.identity, saved.datasets)}
    predictions = replace(saved, lineage=replace(saved.lineage, rules=rules))
    lineage = predictions.lineage
    report(f"eval   {lineage.model} as it was streamed: {counted(lineage.dialogues, 'dialogue')} of {lineage.count}")
    result = score_predictions(predictions, config.evaluation, encoder, root, report)
    from prospect.tracking.tracking import Tracking  # with MLflow

    record_result(Tracking(config.tracking, root), result, rescored=True)
    report(f"eval   written to {result.file}" + (f", page {result.page}" if result.page else ""))
    return result
