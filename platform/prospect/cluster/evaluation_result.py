"""An evaluation's result: scores of what systems decided, as files below the storage root and as an MLflow run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prospect.cluster.common import ReportLine
from prospect.cluster.stream_views import MODEL
from prospect.evaluation.decision_cache import hash_model
from prospect.evaluation.intervals import Interval
from prospect.evaluation.judge import judge_systems
from prospect.evaluation.judge_report import JudgeReport
from prospect.evaluation.lineage import Lineage, counted
from prospect.evaluation.metrics import Scores, evaluate, paired_intervals
from prospect.evaluation.pace_record import PaceReport
from prospect.evaluation.predictions import Predictions, predictions_file, save_predictions
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.sweep import Curves, Decides
from prospect.evaluation.text_intervals import TextScores, score_texts
from prospect.evaluation.text_metrics import score_names
from prospect.files import write_json
from prospect.reports.evaluation.page import Advantage, write_page
from prospect.reports.evaluation.words import words
from prospect.reports.model_card import add_evaluation
from prospect.similarity import SentenceSimilarity
from prospect.tracking.settings import NOTE

if TYPE_CHECKING:
    from prospect.tracking.tracking import Tracking

RIVALS = {
    "joint_goal_accuracy": ("silence", "time prior", "shuffled frames", "blank frames"),
    "content_f1": ("periodic",),
}
"""Systems that a model that watches must beat, by metric; silence stays in the initial state, and periodic recites the
recipe."""


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of an evaluation by system; `MODEL` is the trained one."""

    lineage: Lineage
    scores: dict[str, Scores]
    advantage: Advantage
    """Difference between the model and each of the `RIVALS`, on the same videos."""
    file: Path
    """This result as JSON."""
    fast_share: float
    """Share of watched frames that were decided without `lm_head`."""
    manifest: Mapping[str, Any]
    """Of the model: its run, its encoder."""
    texts: dict[str, TextScores] = field(default_factory=dict)
    """Scores of the words of correct pairs, by system."""
    judge: JudgeReport | None = None
    """What `evaluation.judge` says of the model, and of the other systems that it names."""
    paced: PaceReport | None = None
    """Measured times of the latency-aware run behind the model's scores."""
    page: Path | None = None
    """The HTML page on it, if there is one."""
    champion: bool = False
    """Whether the model was promoted."""

    def compared(self) -> Iterator[str]:
        """A line for each defined advantage."""
        for metric, rivals in self.advantage.items():
            for rival, interval in rivals.items():
                if interval is not None:
                    yield f"{words(metric)} of the {MODEL} less {rival}: {interval}"


def score_predictions(
    predictions: Predictions,
    settings: EvaluationSettings,
    encoder: SentenceSimilarity,
    root: Path,
    report: ReportLine = print,
    sweep: Mapping[Decides, Curves] | None = None,
    paced: PaceReport | None = None,
) -> EvaluationResult:
    """Score what the systems decided, and write result, predictions and page below `root`.

    They lie in `evaluations/RUN/` as `SPLIT-KEY.json`, `SPLIT-KEY.predictions.jsonl.gz` and `SPLIT-KEY.html`.

    Args:
        predictions: of all systems.
        settings: the evaluation section.
        encoder: sentence vectors for the turn matcher.
        root: the storage root.
        report: takes one line of progress at a time.
        sweep: scores of the model over thresholds, a part of its curves.
        paced: measured times of the latency-aware run behind the model's decisions.
    """
    lineage, systems = predictions.lineage, predictions.systems
    if sentences := _sentences(systems.values()):
        encoder.embed(sentences)  # in batches, before dialogues ask for a few each
    scores = {name: evaluate(videos, settings, encoder) for name, videos in systems.items()}
    if sweep:
        scores[MODEL] = replace(scores[MODEL], curves={**scores[MODEL].curves, "sweep": _plain(sweep)})
    run = str(predictions.manifest["run_name"])
    result = EvaluationResult(
        lineage=lineage,
        scores=scores,
        advantage=_advantage(scores, settings),
        file=root / "evaluations" / run / f"{lineage.split}-{lineage.key}.json",
        fast_share=_fast_share(systems[MODEL]) if paced is None else paced.fast_share,
        manifest=predictions.manifest,
        texts={name: score_texts(found, settings) for name, found in scores.items()},
        judge=_judge(systems, settings, str(root), report),
        paced=paced,
    )
    save_predictions(predictions_file(result.file), predictions)
    if settings.report.enabled:
        page = result.file.with_suffix(".html")
        found = write_page(
            page, predictions, scores, settings, encoder, result.advantage, result.judge, paced, result.texts
        )
        result = replace(result, page=found)
    _write(result)
    return result


def _advantage(scores: Mapping[str, Scores], settings: EvaluationSettings) -> Advantage:
    there = {metric: [name for name in names if name in scores] for metric, names in RIVALS.items()}
    return {
        metric: {name: paired_intervals(scores[MODEL], scores[name], settings)[metric] for name in names}
        for metric, names in there.items()
    }


def _sentences(systems: Iterable[Sequence[VideoDecisions]]) -> list[str]:
    """All that any system or its reference says, each once."""
    said = (text for videos in systems for video in videos for text in video.utterances.values())
    wanted = (text for videos in systems for video in videos for text in video.reference_utterances.values())
    return sorted({*said, *wanted})


def _fast_share(videos: Sequence[VideoDecisions]) -> float:
    fast = [decision.fast for video in videos for decision in video.decisions]
    return sum(fast) / len(fast) if fast else 1.0


def _plain(sweep: Mapping[Decides, Curves]) -> dict[str, Any]:
    return {
        name: {dataset: [asdict(point) for point in points] for dataset, points in curves.items()}
        for name, curves in sweep.items()
    }


def _judge(
    systems: Mapping[str, Sequence[VideoDecisions]], settings: EvaluationSettings, root: str, report: ReportLine
) -> JudgeReport | None:
    if settings.judge is None:
        return None
    chosen = dict.fromkeys((MODEL, *settings.judge.systems))
    return judge_systems({name: systems[name] for name in chosen}, settings, root, report)


def _write(result: EvaluationResult) -> None:
    values = {
        "lineage": result.lineage.to_dict(),
        "model": result.lineage.model,
        "fast_share": result.fast_share,
        "manifest": dict(result.manifest),
        "scores": {name: scores.to_dict() for name, scores in result.scores.items()},
        "advantage": _plain_intervals(result.advantage["joint_goal_accuracy"]),
        "content_advantage": _plain_intervals(result.advantage["content_f1"]),
        "texts": {name: texts.to_dict() for name, texts in result.texts.items()},
        "judge": result.judge and result.judge.to_dict(),
        "paced": result.paced and dict(result.paced.values),
    }
    write_json(result.file, values)


def _plain_intervals(intervals: Mapping[str, Interval | None]) -> dict[str, Any]:
    return {name: interval and asdict(interval) for name, interval in intervals.items()}


def _logged(result: EvaluationResult) -> dict[str, float]:
    """All numbers of the model by stable name."""
    texts = {short: result.texts[MODEL].overall[name] for short, name in score_names().items()}
    return {
        **result.scores[MODEL].logged(),
        **{short: value for short, value in texts.items() if value is not None},
        **(result.judge.logged(MODEL) if result.judge else {}),
        **(result.paced.metrics() if result.paced else {}),
        "fast_share": result.fast_share,
    }


def record_result(tracking: "Tracking", result: EvaluationResult, rescored: bool = False) -> None:
    """Log the evaluation to an MLflow run of its own, and its scores on the test split to the model's training run.

    The training run keeps its scores where an evaluation is `rescored` by other rules.
    """
    lineage = result.lineage
    trained_in = result.manifest.get("mlflow_run")
    training = tracking.find_run(trained_in) if trained_in else None
    metrics = {f"eval/{name}": value for name, value in _logged(result).items()}
    name = f"{result.manifest['run_name']} on {lineage.split}"
    run = tracking.open_evaluation(lineage.key, name, training)
    run.log_parameters({"split": lineage.split, "paced": lineage.paced, **lineage.rules})
    run.log_metrics(metrics)
    run.set_tags({NOTE: _described(result), "model": lineage.model, "marks": "; ".join(lineage.marks())})
    for file in filter(None, (result.file, result.page)):
        run.log_file(file, "evaluation")
    run.finish()
    if training is not None and lineage.split == "test" and not lineage.obstacle and not rescored:
        training.log_metrics(metrics)
        training.log_file(result.file, "evaluation")


def complete_card(result: EvaluationResult, root: Path) -> str:
    """Add the scores to the card in the run's model folder; returns the card, or '' where there is no such folder."""
    folder = root / "runs" / str(result.manifest["run_name"]) / "model"
    if not (folder / "config.json").is_file() or hash_model(folder) != result.lineage.weights:
        return ""
    try:
        return add_evaluation(folder, result.lineage, result.scores[MODEL].overall)
    except OSError:  # somebody else's run, which this user may only read
        return ""


def _described(result: EvaluationResult) -> str:
    """One sentence with data, rules and scores."""
    lineage, scores = result.lineage, result.scores[MODEL].logged()
    shown = ", ".join(f"{name} {scores[name]:.3f}" for name in ("joint_goal_accuracy", "turn_f1") if name in scores)
    marks = "".join(f" ATTENTION: {mark}." for mark in lineage.marks())
    dialogues = counted(lineage.dialogues, "dialogue")
    return f"{lineage.model} on {lineage.split}: {dialogues} of {lineage.count}; {shown}.{marks}"
