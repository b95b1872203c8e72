"""Whether an evaluated model becomes the champion: like is compared with like, on the same videos."""

from collections.abc import Callable

from prospect.cluster.common import ReportLine
from prospect.config.schema import Config
from prospect.evaluation.lineage import Lineage, seen_videos
from prospect.evaluation.metrics import Scores, paired_intervals
from prospect.evaluation.records import Placed
from prospect.evaluation.settings import EvaluationSettings
from prospect.model.saved import SavedModel, read_saved
from prospect.tracking.tracking import Tracking

ScoreModel = Callable[[SavedModel], Scores | None]
"""Streams a model through the dialogues of the evaluation, and scores it; None where their frames are another
encoder's than the model's."""


def promote_if_better(
    tracking: Tracking,
    lineage: Lineage,
    scores: Scores,
    placed: list[Placed],
    settings: EvaluationSettings,
    score: ScoreModel,
    report: ReportLine,
) -> bool:
    """Make the evaluated model the champion if it is the first, or better than the champion beyond doubt.

    The champion is scored on the same videos by the same rules; decisions of an earlier evaluation are reused. It is
    replaced where the interval of the difference, paired by video, lies above zero.

    Returns:
        Whether the model is the champion now.
    """
    name, version = tracking.version_of(lineage.model)
    metric = "joint_goal_accuracy" if scores.overall["joint_goal_accuracy"] is not None else "turn_f1"
    if lineage.paced is None:  # the version's tags are of its words and states, not of a machine
        score_tag = {f"eval.{metric}": repr(scores.overall[metric] or 0.0), "eval": lineage.key}
        tracking.tag_version(name, version, score_tag)

    def verdict(sentence: str) -> None:
        report(f"eval   models:/{name}/{version} {sentence}")

    if lineage.obstacle is not None:
        verdict(f"is not promoted: {lineage.obstacle}")
        return False
    champion = tracking.champion(name)
    if champion == version:
        verdict("was the champion before, and still is")
        return True
    if champion is not None:
        standing = _standing(read_saved(tracking.resolve(f"models:/{name}/{champion}")), placed, score)
        if isinstance(standing, str):
            verdict(
                f"is not promoted: the champion, version {champion}, {standing}; `prospect promote` does it by hand"
            )
            return False
        difference = paired_intervals(scores, standing, settings)[metric]
        shown = f"{metric} differs by {difference}" if difference else f"{metric} is undefined"
        if difference is None or not difference.low > 0:
            verdict(f"is not better than the champion, version {champion}: {shown}")
            return False
        verdict(f"is the champion now, before it version {champion}: {shown}")
    else:
        verdict(f"is the champion now, as the first ({metric} {scores.overall[metric] or 0.0:.3f})")
    tracking.set_champion(name, version)
    return True


def _standing(champion: SavedModel, placed: list[Placed], score: ScoreModel) -> Scores | str:
    """The champion's scores, or why they cannot be compared."""
    if seen_videos(champion.manifest, (dialogue for dialogue, _ in placed)):
        return "was trained on some of these videos"
    found = score(champion)
    return "sees frames of another encoder" if found is None else found


def promote_by_hand(config: Config, name: str, version: str, report: ReportLine = print) -> None:
    """Make a version the champion whatever its scores are, or an earlier one again.

    Raises:
        CheckpointError: there is no such version.
        ConfigError: `version` is no number.
    """
    tracking = Tracking(config.tracking, config.storage.root)
    _, number = tracking.version_of(f"models:/{name}/{version}")
    before = tracking.champion(name)
    tracking.set_champion(name, number)
    earlier = f"version {before}" if before else "there was none"
    report(f"models:/{name}/{number} is the champion now; before it {earlier}")
