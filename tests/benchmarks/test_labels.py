"""The suite `labels`: its gold, the methods it compares, and that the aligner keeps the lead it was chosen for."""

import json

import numpy as np
import pytest
from rich.console import Console

from prospect.benchmarks.labels.fit import fit_outside, fit_weights
from prospect.benchmarks.labels.gold import Gold, GoldVideo, bookkept, goalstep
from prospect.benchmarks.labels.methods import aligner, bidirectional, greedy, uniform
from prospect.benchmarks.labels.scores import score
from prospect.benchmarks.labels.suite import measure
from prospect.benchmarks.settings import LabelsSuite
from prospect.data.labels.aligner import AlignerSettings, Evidence
from prospect.dialogue.schema import Annotation
from prospect.errors import DataError

SETTINGS = AlignerSettings()


def evidence(*rows: tuple[float, ...]) -> Evidence:
    return Evidence(np.array(rows), np.zeros(len(rows) - 1), np.zeros(len(rows)))


def test_goalstep_has_112_videos_with_two_steps_that_have_substeps(shared_data):
    gold = goalstep(shared_data / "prepared")
    assert len(gold.videos) == 112
    assert gold.excluded["videos with fewer than two steps that have substeps"] == 22
    assert sum(video.tuning for video in gold.videos) == 60
    assert all(len(set(video.gold)) == len(video.steps) for video in gold.videos)


def test_missing_gold_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"^suite\.path: .*goalstep_val\.jsonl\.gz does not exist"):
        goalstep(tmp_path)


def test_the_greedy_pass_never_goes_back_and_may_leave_steps_out():
    found = evidence((1, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0.5, 0))
    assert greedy(found, SETTINGS).tolist() == [0, 1, 1, 1]
    assert uniform(found, SETTINGS).tolist() == [0, 0, 1, 2]


def test_the_bidirectional_method_keeps_the_surer_of_two_passes():
    """Forward says 0, 1, 1, 1 and backward 0, 1, 1, 2; the last block is the backward pass's anchor."""
    found = evidence((1, 0, 0), (0, 1, 0), (0, 1, 0), (0, 0.9, 0.8))
    assert greedy(found, SETTINGS).tolist() == [0, 1, 1, 1]
    assert bidirectional(found, SETTINGS).tolist() == [0, 1, 1, 2]


def test_scores_of_one_video():
    blocks = tuple(Annotation(start=t, end=t + 10, text="x") for t in (0, 10, 20, 30))
    video = GoldVideo("video", ("a", "b"), blocks, (0, 0, 1, 1), ((0, 20), (20, 40)))
    found = score(video, np.array([0, 1, 1, 1]), np.array([10.0, 20, 30, 40]))
    assert (found.accuracy, found.missing, found.offsets.tolist()) == (0.75, 0, [10])
    assert found.iou == pytest.approx((10 / 20 + 20 / 30) / 2)


def test_fitted_weights_find_what_the_gold_listens_to():
    random = np.random.default_rng(0)
    examples = []
    for number in range(20):
        gold = np.sort(np.concatenate([np.arange(4), random.integers(4, size=12)]))
        similarity = random.normal(size=(16, 4)) + 1.5 * (gold[:, None] == np.arange(4))
        blocks = tuple(Annotation(start=float(t), text="x") for t in range(16))
        video = GoldVideo(str(number), tuple("abcd"), blocks, tuple(gold.tolist()), ((0, 1),) * 4)
        examples.append((video, Evidence(similarity, random.normal(size=15), np.zeros(16))))
    similarity_weight, pause_weight = fit_weights(examples)
    assert similarity_weight > 1
    assert abs(pause_weight) < 0.5


def test_bookkeeping_stands_before_and_behind_the_steps():
    blocks = tuple(Annotation(start=t, end=t + 10, text="x") for t in (20, 30))
    gold = Gold((GoldVideo("video", ("a", "b"), blocks, (0, 1), ((20, 30), (30, 40))),), {})
    [video] = bookkept(gold).videos
    assert video.gold == (-1, 0, 1, 2)
    assert video.in_order
    assert video.blocks[0].start <= 20
    assert video.blocks[-1].start >= 40
    ends = np.array([25.0, 30, 40, 50])
    assert score(video, np.array([-1, 0, 1, -1]), ends).accuracy == 1
    assert score(video, np.array([0, 0, 1, 1]), ends).accuracy == 0.5


def test_the_price_of_staying_unassigned_is_fitted():
    random = np.random.default_rng(0)
    examples = []
    for number in range(20):
        gold = np.array([-1, 0, 0, 1, 1, 2])
        similarity = 0.2 * random.random((6, 2))
        similarity[range(1, 5), gold[1:5]] = 0.6
        bookkeeping = np.where((gold < 0) | (gold == 2), 0.8, 0.1 * random.random(6))
        blocks = tuple(Annotation(start=float(t), text="x") for t in range(6))
        video = GoldVideo(str(number), ("a", "b"), blocks, tuple(gold.tolist()), ((0, 1),) * 2)
        examples.append((video, Evidence(similarity, np.zeros(5), bookkeeping)))
    price, weight = fit_outside(SETTINGS, examples)
    assert price < 0 < weight
    fitted = SETTINGS.model_copy(update={"outside_price": price, "outside_weight": weight})
    assert aligner(examples[0][1], fitted).tolist() == [-1, 0, 0, 1, 1, -1]


@pytest.mark.e2e
@pytest.mark.long
def test_the_suite_on_real_gold(shared_data):
    """The defaults are the weights fitted on the tuning half, and the report half shows the aligner ahead."""
    suite = LabelsSuite(path=shared_data / "prepared", transfer_videos=5, bootstrap_samples=100)
    result = json.loads(json.dumps(measure(suite, Console(quiet=True))))
    assert result["fitted"]["similarity_weight"] == pytest.approx(SETTINGS.similarity_weight, abs=0.06)
    assert result["fitted"]["pause_weight"] == pytest.approx(SETTINGS.pause_weight, abs=0.06)
    for half in ("report", "report, bookkept"):
        assert result["goalstep"][half]["aligner"]["accuracy"]["value"] > 0.885
    report = result["goalstep"]["report"]
    best_rival = max(report[name]["accuracy"]["high"] for name in ("uniform split", "bidirectional", "monotone DP"))
    assert report["aligner"]["accuracy"]["low"] > best_rival
    assert result["calibration"]["error"] < 0.1
