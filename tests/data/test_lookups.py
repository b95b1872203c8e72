"""Where the words are to be found that an utterance says."""

import re

import pytest

from prospect.data.clips import Clip, clip_sequence, make_clip
from prospect.data.lookups import LookupFinder
from prospect.dialogue.schema import Turn
from prospect.dialogue.sequence import FrameSequence, SequenceBuilder
from prospect.dialogue.state import StepState
from tests.factories import CONTEXT, collator, recipe, tea_dialogue, timeline_of, tiny_vocabulary

VOCABULARY = tiny_vocabulary()
TEA = tea_dialogue()


def sequence_of(said: str, *steps: str, limit: int = 256) -> tuple[FrameSequence, Clip]:
    """A clip of 60 frames in which the assistant speaks at 12 s; step n is done from 3 + n / 2 s on, for 0.5 s."""
    dialogue = TEA.model_copy(
        update={
            "steps": recipe(*((step, 3.0 + at / 2, 3.5 + at / 2) for at, step in enumerate(steps))),
            "turns": (Turn(role="assistant", time=12.0, text=said),),
        }
    )
    context = CONTEXT.model_copy(update={"max_context_tokens": limit})
    clip = make_clip(dialogue, timeline_of(dialogue), 0, 60, context, "strict")
    return clip_sequence(clip, SequenceBuilder(VOCABULARY, context, tokens_per_frame=2)), clip


def found(said: str, *steps: str, limit: int = 256) -> list[tuple[str, str]]:
    """Text of the predicted tokens, and of the tokens in the steps' lines."""
    sequence, clip = sequence_of(said, *steps, limit=limit)
    first = min(sequence.image_positions)
    lookups = [each for each in LookupFinder(VOCABULARY).find(sequence, clip, 0) if each.place < first]
    assert all(each.position > first and sequence.ids[each.position + 1] == each.word for each in lookups)
    decode = VOCABULARY.tokenizer.decode
    return [(decode([each.word]), decode([sequence.ids[each.place]])) for each in lookups]


@pytest.mark.parametrize("said", ["Good. Now pour water.", "Pour water", "No, POUR WATER!"])
def test_each_word_of_a_name_is_found_whatever_its_case(said: str) -> None:
    """Whatever tokens it is spelt with: each looks at the one that has its first letter."""
    pairs = found(said, "Boil water", "Pour water", "Add milk")
    assert "".join(word for word, _ in pairs).strip(" .!") == re.search("pour water", said, re.IGNORECASE).group()
    letters = [(word.strip(), line.strip().lower()) for word, line in pairs if word.strip(" .!")]
    assert all(word[0].lower() in line for word, line in letters)


def test_several_names_and_names_that_are_said_twice_are_all_found() -> None:
    names = ("boil water", "pour water")
    once = [len(found(f"Now {name}.", *names)) for name in names]
    assert len(found("First boil water, then pour water.", *names)) == sum(once)
    assert len(found("Now pour water: yes, pour water.", *names)) == 2 * once[1] > 2


@pytest.mark.parametrize("said", ["Good. Now water.", "All done.", "Now pour waters.", "Repour water."])
def test_a_name_that_is_not_said_whole_is_not_found(said: str) -> None:
    assert not found(said, "boil water", "pour water")


def test_a_step_without_a_line_is_not_found() -> None:
    many = [*(f"stir pot {number}" for number in range(30)), "pour water"]
    assert found("Now pour water.", *many, limit=1024)
    assert not found("Now pour water.", *many, limit=280), "its line is folded"


@pytest.mark.parametrize("said", ["No, leave cup! Pour water.", "Pour water. CUP"])
def test_a_word_of_another_recipe_is_looked_up_in_the_frame(said: str) -> None:
    """What a step of the clip's own names is in its line, and other words are in no step's name."""
    sequence, clip = sequence_of(said, "pour water")
    frame = sequence.decision_positions[23]  # decided at 12 s
    pairs = {}
    for names in ([], ["wash cup", "leave water"], ["leaves"]):
        found = LookupFinder(VOCABULARY, names).find(sequence, clip, 0)
        pairs[len(names)] = [each for each in found if each.place == frame]
        assert all(sequence.ids[each.position + 1] == each.word for each in pairs[len(names)])
    spelt = VOCABULARY.tokenizer.decode([each.word for each in pairs[2]])
    assert "".join(spelt.lower().split()) == ("leavecup" if "leave" in said else "cup")
    assert not pairs[0]
    assert not pairs[1]


def test_one_frame_of_each_step_in_progress_says_its_name() -> None:
    clip = make_clip(TEA, timeline_of(TEA), 0, 60, CONTEXT, "strict")
    sequence = clip_sequence(clip, SequenceBuilder(VOCABULARY, CONTEXT, tokens_per_frame=2))
    drawn = []
    for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0)):
        found = LookupFinder(VOCABULARY, seed=seed).find(sequence, clip, epoch)
        named = [each for each in found if each.position == each.place]
        frames = list(dict.fromkeys(sequence.decision_positions.index(each.place) for each in named))
        for step, frame in enumerate(frames):
            assert clip.states[frame].steps[step] is StepState.IN_PROGRESS
        text = VOCABULARY.tokenizer.decode([each.word for each in named])
        assert "".join(text.split()) == "".join("".join(TEA.step_names).split())
        drawn.append(frames)
    assert drawn[0] == drawn[1]
    assert drawn[0] not in drawn[2:]


def test_a_batch_holds_flat_positions_within_each_clip() -> None:
    clip = make_clip(TEA, timeline_of(TEA), 0, 60, CONTEXT, "strict")
    collate = collator(VOCABULARY)
    assert not len(collate([clip]).lookups), "nobody asks for them"
    collate.finder = LookupFinder(VOCABULARY)
    alone, batch = collate([clip]), collate([clip, clip])
    assert len(alone.lookups) > 0
    assert batch.lookups.tolist() == [*alone.lookups.tolist(), *(alone.lookups + alone.num_tokens).tolist()]
    assert batch.lookup_words.tolist() == 2 * alone.lookup_words.tolist()
    assert batch.looked_up.tolist() == [*alone.looked_up.tolist(), *(alone.looked_up + alone.num_tokens).tolist()]
