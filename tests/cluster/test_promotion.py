"""A champion is replaced by a model that is better on the same videos, and by no other."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prospect import cli
from prospect.cluster.promotion import promote_if_better
from prospect.cluster.record import INTERFACE
from prospect.evaluation.baselines import oracle, silence
from prospect.evaluation.lineage import TRAINED_ON, Lineage
from prospect.evaluation.metrics import Scores, evaluate
from prospect.evaluation.records import Placed
from prospect.evaluation.settings import EvaluationSettings
from prospect.tracking.settings import TrackingSettings
from prospect.tracking.tracking import Tracking
from tests.evaluation.encoders import SharedWords
from tests.evaluation.test_lineage import LINEAGE
from tests.factories import timeline_of, toy_dialogue

PLACED: list[Placed] = [(dialogue, timeline_of(dialogue)) for dialogue in map(toy_dialogue, range(8))]
SETTINGS = EvaluationSettings()
NOTHING = evaluate([silence(*pair) for pair in PLACED], SETTINGS, SharedWords())
EVERYTHING = evaluate([oracle(*pair) for pair in PLACED], SETTINGS, SharedWords())


@dataclass
class Registry:
    """A real MLflow database, and versions of one model in it."""

    tracking: Tracking
    root: Path

    def register(self, trained_on: list[str] | None = None) -> int:
        number = len(list(self.root.glob("model-*")))
        folder = self.root / f"model-{number}"
        folder.mkdir()
        manifest = {} if trained_on is None else {TRAINED_ON: trained_on}
        (folder / "prospect.json").write_text(json.dumps({"run_name": f"run-{number}", **manifest}))
        (folder / "config.json").write_text("{}")
        run = self.tracking.open_run(self.root / f"run-{number}", f"run-{number}")
        return self.tracking.register("dst", run, folder, INTERFACE)

    def judge(self, version: int, scores: Scores, champion: Scores | None = NOTHING, **change: Any) -> tuple[bool, str]:
        """Whether the version is promoted, and the line that says why."""
        lines: list[str] = []
        lineage = Lineage(**{**vars(LINEAGE), "model": f"models:/dst/{version}", **change})
        promoted = promote_if_better(
            self.tracking, lineage, scores, PLACED, SETTINGS, lambda saved: champion, lines.append
        )
        return promoted, lines[-1]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Registry(Tracking(TrackingSettings(), tmp_path), tmp_path)


def test_the_first_is_the_champion_until_a_better_one_comes(registry: Registry) -> None:
    first, second = registry.register([]), registry.register([])
    promoted, line = registry.judge(first, NOTHING)
    assert promoted
    assert f"models:/dst/{first} is the champion now, as the first (joint_goal_accuracy 0." in line
    assert registry.tracking.champion("dst") == first
    assert registry.judge(first, NOTHING)[1].endswith("was the champion before, and still is")
    promoted, line = registry.judge(second, EVERYTHING)
    assert promoted
    assert f"is the champion now, before it version {first}: joint_goal_accuracy differs by" in line
    assert registry.tracking.champion("dst") == second


def test_as_good_is_not_better_nor_is_what_may_be_chance(registry: Registry) -> None:
    first, second = registry.register([]), registry.register([])
    registry.judge(first, EVERYTHING)
    assert registry.judge(second, EVERYTHING, champion=EVERYTHING)[0] is False
    luckily = [(oracle if n == 0 else silence)(*pair) for n, pair in enumerate(PLACED)]
    one_better = evaluate(luckily, SETTINGS, SharedWords())
    promoted, line = registry.judge(second, one_better, champion=NOTHING)
    assert not promoted
    assert "is not better than the champion, version 1: joint_goal_accuracy differs by 0." in line
    assert registry.tracking.champion("dst") == first


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"told": True}, "it was told the reference's state"),
        ({"seen": ("toy/v0",)}, "it was trained on 1 of the videos"),
        ({"seen": None}, "its manifest does not say which videos it was trained on"),
        ({"paced": {"speed": 1, "sessions": 1}}, "its score depends on this machine's speed"),
    ],
)
def test_a_score_that_flatters_promotes_nothing(registry: Registry, change: dict[str, Any], why: str) -> None:
    version = registry.register([])
    promoted, line = registry.judge(version, EVERYTHING, **change)
    assert (promoted, line) == (False, f"eval   models:/dst/{version} is not promoted: {why}")
    assert registry.tracking.champion("dst") is None


def test_a_latency_aware_score_leaves_the_version_s_own_score(registry: Registry) -> None:
    version = registry.register([])
    registry.judge(version, NOTHING)
    registry.judge(version, EVERYTHING, paced={"speed": 1, "sessions": 1})
    tags = registry.tracking.client.get_model_version("dst", str(version)).tags
    assert float(tags["eval.joint_goal_accuracy"]) == NOTHING.overall["joint_goal_accuracy"]


def test_a_champion_that_cannot_be_compared_stays(registry: Registry) -> None:
    first, second = registry.register(["toy/v3"]), registry.register([])
    registry.judge(first, NOTHING)
    assert "was trained on some of these videos" in registry.judge(second, EVERYTHING)[1]
    registry.tracking.set_champion("dst", registry.register([]))
    assert "sees frames of another encoder" in registry.judge(second, EVERYTHING, champion=None)[1]
    assert registry.tracking.champion("dst") == 3


def test_a_person_promotes_and_takes_it_back(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = registry.register([]), registry.register([])
    registry.tracking.set_champion("dst", first)
    for version, before in ((second, first), (first, second)):
        with pytest.raises(SystemExit) as ended:
            cli.main(["promote", "dst", str(version), f"storage.root={registry.root}"])
        assert ended.value.code == 0
        assert f"models:/dst/{version} is the champion now; before it version {before}" in capsys.readouterr().out
    assert registry.tracking.champion("dst") == first


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["dst"], "prospect promote NAME VERSION [SECTION.KEY=VALUE] ... needs both"),
        (["dst", "9"], "model 'models:/dst/9' is not registered"),
        (["nobody", "1"], "model 'models:/nobody/1' is not registered"),
    ],
)
def test_a_mistaken_promotion_is_one_line(
    registry: Registry, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.register([])
    with pytest.raises(SystemExit) as ended:
        cli.main(["promote", *arguments, *([f"storage.root={registry.root}"] if len(arguments) > 1 else [])])
    assert ended.value.code == 2
    assert f"error: {sentence}" in capsys.readouterr().err
