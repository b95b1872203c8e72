"""Four hand-made videos: two with a recipe, one with talk alone, one with nothing."""

from collections.abc import Sequence

import pytest

from prospect.dialogue.schema import Dialogue, Turn
from prospect.dialogue.timeline import Timeline
from tests.evaluation.encoders import SharedWords
from tests.factories import recipe, timeline_of

Reference = tuple[Dialogue, Timeline]


@pytest.fixture(scope="session")
def words() -> SharedWords:
    return SharedWords()


def _reference(video: str, goal: str, steps: Sequence[tuple[str, float, float]], **fields: str) -> Reference:
    """A dialogue that names each step when it starts and confirms the last."""
    turns = [Turn(role="assistant", time=start, text=name) for name, start, _ in steps]
    if steps:
        turns.append(Turn(role="assistant", time=steps[-1][2], text="well done, all finished"))
    dialogue = Dialogue(
        dataset=fields.get("dataset", "sample"),
        video_id=video,
        dialogue_id=f"{video}-{fields.get('user_type', 'no_talk')}",
        user_type=fields.get("user_type", "no_talk"),
        goal=goal,
        steps=recipe(*steps),
        turns=tuple(turns),
        duration=40.0,
    )
    return dialogue, timeline_of(dialogue)


@pytest.fixture(scope="session")
def tea() -> Reference:
    steps = [("boil water", 3.0, 9.0), ("drop teabag inside mug", 9.0, 15.5), ("pour everything slowly", 20.0, 31.0)]
    return _reference("tea", "make tea", steps)


@pytest.fixture(scope="session")
def toy() -> Reference:
    steps = [("attach both front wheels", 5.0, 12.0), ("tighten screws", 14.0, 26.5)]
    return _reference("toy", "assemble a toy", steps, dataset="assembly101", user_type="talk_some")


@pytest.fixture(scope="session")
def chat() -> Reference:
    """Talk without a recipe."""
    turns = (
        Turn(role="user", time=4.0, text="what is this"),
        Turn(role="assistant", time=4.5, text="that is a whisk"),
        Turn(role="assistant", time=20.0, text="careful the pan gets hot"),
    )
    dialogue = Dialogue(dataset="wtag", video_id="chat", dialogue_id="chat", turns=turns, duration=40.0)
    return dialogue, timeline_of(dialogue)


@pytest.fixture(scope="session")
def quiet() -> Reference:
    """A video in which nothing is said and nothing is to be done."""
    dialogue = Dialogue(dataset="wtag", video_id="quiet", dialogue_id="quiet", duration=40.0)
    return dialogue, timeline_of(dialogue)


@pytest.fixture(scope="session")
def references(tea: Reference, toy: Reference, chat: Reference, quiet: Reference) -> list[Reference]:
    return [tea, toy, chat, quiet]
