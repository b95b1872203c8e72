"""Which step an utterance names, and whether it steps in for a mistake."""

from dataclasses import replace

import pytest

from prospect.corpus.tasks import DATASET, named_actions
from prospect.dialogue.schema import Annotation, Dialogue, Turn
from prospect.dialogue.timeline import num_frames, place
from prospect.evaluation.baselines import oracle, silence
from prospect.evaluation.metrics import evaluate
from prospect.evaluation.records import VideoDecisions
from prospect.evaluation.settings import EvaluationSettings
from tests.factories import recipe

SETTINGS = EvaluationSettings(bootstrap_samples=50)


def saying(reference, texts):
    decisions = [replace(d, utterance=texts.get(d.frame)) for d in oracle(*reference).decisions]
    return VideoDecisions(*reference, decisions)


def drawn(*turns, steps=(("Cut the kite", 3.0, 9.0), ("Wash the ball", 10.0, 15.0), ("Wrap the box", 16.0, 20.0))):
    dialogue = Dialogue(
        dataset=DATASET, video_id="v", dialogue_id="v#0", steps=recipe(*steps), turns=turns, duration=25.0
    )
    return dialogue, place(dialogue, num_frames(25.0))


@pytest.mark.parametrize(
    ("frame", "text", "right"),
    [
        (7, "boil water", 1.0),  # in progress
        (7, "drop teabag inside mug", 1.0),  # next
        (7, "pour everything slowly", 0.0),
        (34, "drop teabag inside mug", 1.0),  # completed last
        (34, "boil water", 0.0),  # completed before that
        (7, "hello there", None),
    ],
)
def test_an_utterance_names_the_step_it_is_nearest_to(frame, text, right, tea, words):
    dialogue, timeline = tea
    kitchen = dialogue.model_copy(update={"dataset": "kitchen"}), timeline
    assert evaluate([saying(kitchen, {frame: text})], SETTINGS, words).overall["step_correctness"] == right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("First, cut the kite.", 1.0),
        ("After this, wash the ball.", 1.0),
        ("Good. Next, wrap the box.", 0.0),
        ("Good. Next, cut the box.", 0.0),  # of no recipe
        ("Use the knife.", None),
    ],
)
def test_on_the_sample_corpus_the_words_tell(text, right, words):
    scores = evaluate([saying(drawn(), {6: text})], SETTINGS, words).overall
    assert (scores["step_correctness"], scores["step_naming_rate"]) == (right, 0.0 if right is None else 1.0)


def test_actions_are_named_by_verb_and_object():
    assert named_actions("Good. Next, cut the kite.") == {"Cut the kite"}
    assert named_actions("No, leave the ball. Wash the box, then wrap the box.") == {"Wash the box", "Wrap the box"}
    assert not named_actions("Cut it with the knife.")


def test_interventions_are_scored_in_time(words):
    """One of two is found, a second late; a third was not asked for."""
    no = "No, leave the moon. Cut the kite."
    turns = [Turn(role="assistant", time=time, text=no, labels="initiative|correction") for time in (2.0, 12.0)]
    scores = evaluate([saying(drawn(*turns), {5: no, 40: no})], SETTINGS, words).overall
    assert (scores["intervention_precision"], scores["intervention_recall"], scores["intervention_f1"]) == (0.5,) * 3
    assert evaluate([silence(*drawn(*turns))], SETTINGS, words).overall["intervention_recall"] == 0.0
    assert evaluate([silence(*drawn())], SETTINGS, words).overall["intervention_f1"] is None


def test_a_correction_that_repeats_an_instruction_is_one_where_its_turn_says_so(words):
    again = "Cut the kite."
    labels = ((2.0, "initiative|instruction"), (12.0, "initiative|correction"))
    turns = [Turn(role="assistant", time=time, text=again, labels=label) for time, label in labels]
    found = evaluate([silence(*drawn(*turns))], SETTINGS, words)
    assert found.overall.counts["interventions_reference"] == 1


def test_elsewhere_an_utterance_steps_in_that_is_nearest_to_a_known_mistake(tea, words):
    dialogue, timeline = tea
    mistakes = (Annotation(start=12.0, end=14.0, text="pick a spoon", mistake="wrong tool use a mug"),)
    kitchen = dialogue.model_copy(update={"dataset": "kitchen", "annotations": mistakes})
    said = {23: "wrong tool", 39: "pour everything"}
    scores = evaluate([saying((kitchen, timeline), said)], SETTINGS, words).overall
    assert (scores["intervention_precision"], scores["intervention_recall"]) == (1.0, 1.0)
    unmarked = evaluate([saying((dialogue.model_copy(update={"dataset": "kitchen"}), timeline), said)], SETTINGS, words)
    assert unmarked.overall["intervention_f1"] is None, "nothing is known to be a correction"
