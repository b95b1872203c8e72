"""The same dialogue streamed with the reference's state, without a state, and at other thresholds."""

import pytest

from prospect.evaluation.metrics import evaluate
from prospect.evaluation.records import Variant
from prospect.evaluation.settings import EvaluationSettings
from prospect.evaluation.stream import spec_of, stream_dialogues
from prospect.evaluation.sweep import threshold_curves
from prospect.evaluation.thresholds import DEFAULT
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from tests.evaluation.encoders import SharedWords
from tests.factories import TOY_CONTEXT, features, tea_dialogue, timeline_of, tiny_model, tiny_vocabulary

SETTINGS = EvaluationSettings(bootstrap_samples=20)
BRIEF = TOY_CONTEXT.model_copy(update={"max_utterance_tokens": 4})
PLACED = (tea_dialogue(), timeline_of(tea_dialogue()))


@pytest.fixture(scope="module")
def engine() -> StreamingEngine:
    settings = StreamingSettings(max_sessions=4, max_waiting_frames=10**6, dst_decoder="readout")
    return StreamingEngine(tiny_model(tiny_vocabulary(), "heads", seed=3), BRIEF, settings)


def streamed(engine, variant):
    def read(dialogue, start, stop):
        return features(dialogue.video_id, start, stop)

    [video] = stream_dialogues(engine, [PLACED], read, [spec_of(*PLACED, variant)])
    return video


def test_told_the_state_a_random_model_has_it_right_at_every_frame(engine):
    told = evaluate([streamed(engine, Variant("told"))], SETTINGS, SharedWords()).overall
    watched = evaluate([streamed(engine, Variant())], SETTINGS, SharedWords()).overall
    assert (told["joint_goal_accuracy"], told["dst_f1"], told["illegal_update_rate"]) == (1.0, 1.0, 0.0)
    assert watched["joint_goal_accuracy"] < 0.5


def test_without_a_state_nothing_is_updated(engine):
    video = streamed(engine, Variant("untracked"))
    assert not video.events()
    assert {decision.p_update for decision in video.decisions} == {0.0}


def test_a_variant_acts_at_its_own_thresholds(engine):
    mute, eager = (streamed(engine, Variant(speak=threshold)) for threshold in (1.0, 0.0))
    assert not mute.utterances
    assert eager.decisions[0].silence is None, "it speaks, or has no words"
    points = threshold_curves("speak", (0.0, 1.0), [[eager], [mute]], SETTINGS, SharedWords())[DEFAULT]
    assert [point.threshold for point in points] == [0.0, 1.0]
    assert points[1].recall == 0.0
    assert points[0].events == len(mute.reference_utterances)
