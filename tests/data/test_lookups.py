"""Where the words of a step's name stand that an utterance says."""

import re
from dataclasses import replace

import pytest

from prospect.data.clips import clip_sequence, make_clip
from prospect.data.lookups import LookupFinder
from prospect.dialogue.schema import Turn
from prospect.dialogue.sequence import SequenceBuilder
from tests.factories import CONTEXT, collator, recipe, tea_dialogue, timeline_of, tiny_vocabulary

VOCABULARY = tiny_vocabulary()
TEA = tea_dialogue()


def found(said: str, *steps: str, limit: int = 256) -> list[tuple[str, str]]:
    """Text of the predicted tokens, and of the tokens in the steps' lines, of an utterance at 12 s."""
    dialogue = TEA.model_copy(
        update={
            "steps": recipe(*((step, 3.0 + at / 2, 3.5 + at / 2) for at, step in enumerate(steps))),
            "turns": (Turn(role="assistant", time=12.0, text=said),),
        }
    )
    context = CONTEXT.model_copy(update={"max_context_tokens": limit})
    clip = make_clip(dialogue, timeline_of(dialogue), 0, 60, context, "strict")
    sequence = clip_sequence(clip, SequenceBuilder(VOCABULARY, context, tokens_per_frame=2))
    pairs = LookupFinder(VOCABULARY).find(sequence, dialogue.step_names)
    assert all(at < min(sequence.image_positions) < looks for looks, at in pairs), "from the frames to the context"
    decode = VOCABULARY.tokenizer.decode
    return [(decode([sequence.ids[looks + 1]]), decode([sequence.ids[at]])) for looks, at in pairs]


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


def test_a_batch_holds_flat_positions_within_each_clip() -> None:
    clip = make_clip(TEA, timeline_of(TEA), 0, 60, CONTEXT, "strict")
    collate = collator(VOCABULARY)
    assert not len(collate([clip]).lookups), "nobody asks for them"
    collate.finder = LookupFinder(VOCABULARY)
    alone, batch = collate([clip]), collate([clip, replace(clip, id="again")])
    assert len(alone.lookups) > 0
    assert batch.lookups.tolist() == [*alone.lookups.tolist(), *(alone.lookups + alone.num_tokens).tolist()]
    assert batch.looked_up.tolist() == [*alone.looked_up.tolist(), *(alone.looked_up + alone.num_tokens).tolist()]
