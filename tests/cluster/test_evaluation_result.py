"""What a result says of the model beside the systems that watch nothing."""

import json
from dataclasses import replace
from pathlib import Path

from prospect.cluster.evaluation_result import EvaluationResult, score_predictions
from prospect.cluster.stream_views import MODEL
from prospect.dialogue.schema import Turn
from prospect.evaluation.baselines import Periodic, oracle, silence
from prospect.evaluation.predictions import Predictions
from prospect.evaluation.settings import EvaluationSettings
from tests.evaluation.encoders import SharedWords
from tests.evaluation.measures.test_wording import drawn
from tests.evaluation.test_lineage import LINEAGE
from tests.factories import timeline_of, toy_dialogue

SETTINGS = EvaluationSettings(bootstrap_samples=20)
SAMPLE = drawn(Turn(role="assistant", time=5.0, text="First, cut the kite."))
TOY = toy_dialogue(0), timeline_of(toy_dialogue(0))


def result_of(root: Path, reference, model=oracle) -> EvaluationResult:
    systems = {MODEL: model, "silence": silence, "periodic": Periodic(60.0, 9.0)}
    videos = {name: [system(*reference)] for name, system in systems.items()}
    return score_predictions(
        Predictions(replace(LINEAGE), {"run_name": "a"}, videos, {}), SETTINGS, SharedWords(), root
    )


def test_the_sample_corpus_compares_words_with_those_of_periodic(tmp_path: Path) -> None:
    result = result_of(tmp_path, SAMPLE)
    assert "content F1 of the trained model less periodic: 1.000 [1.000, 1.000]" in [*result.compared()]
    assert next(iter(result.compared())).startswith("joint goal accuracy of the trained model less silence: 0.")
    assert json.loads(result.file.read_text())["content_advantage"]["periodic"]["low"] == 1.0
    page = result.file.with_suffix(".html").read_text()
    assert "<p>The model's content F1 less that of periodic: 1.000 (1.000 to 1.000).</p>" in page
    assert "by the mean of content F1 and joint goal accuracy." in page


def test_other_data_has_no_content_to_compare(tmp_path: Path) -> None:
    result = result_of(tmp_path, TOY)
    assert [line.partition(":")[0] for line in result.compared()] == [
        "joint goal accuracy of the trained model less silence"
    ]
    page = result.file.with_suffix(".html").read_text()
    assert "less that of periodic" not in page
    assert "by the mean of turn F1 and joint goal accuracy." in page
