"""The corpus before it is drawn: what happens in each video, and what is to be seen at each moment."""

import random
from dataclasses import dataclass

from prospect.corpus.scene import Scene
from prospect.corpus.script import TALK_RATES, Script, write_script
from prospect.corpus.settings import CorpusSettings
from prospect.corpus.talk import write_dialogue
from prospect.corpus.tasks import OBJECTS, draw_tasks
from prospect.dialogue.schema import Dialogue
from prospect.hashing import derived_seed


@dataclass(frozen=True)
class DrawnVideo:
    """One video of the corpus, before it is drawn."""

    script: Script
    dialogue: Dialogue
    seed: int


def plan_corpus(settings: CorpusSettings) -> list[DrawnVideo]:
    """Everything but the pictures; each video depends on the settings alone.

    Raises:
        ConfigError: the settings leave no unseen task (`tasks.draw_tasks`).
    """
    videos = []
    user_types = tuple(TALK_RATES)
    for split, tasks in draw_tasks(settings).items():
        for index, task in enumerate(tasks):
            video_id = f"{split}_{index:04d}"
            seed = derived_seed(settings.seed, video_id)
            rng = random.Random(seed)
            script = write_script(task, user_types[index % len(user_types)], settings, rng)
            videos.append(DrawnVideo(script, write_dialogue(script, video_id, split, rng), seed))
    return videos


def scene_at(script: Script, time: float, nudge: tuple[int, int] = (0, 0)) -> Scene:
    """The table when all events up to `time` are visible."""
    task = script.task
    done = {span.work.object: span.work.action for span in script.spans if span.step is not None and span.end <= time}
    lying = sorted({*task.distractors, *(work.object for work in task.recipe)}, key=OBJECTS.index)
    hand = next((span.work for span in script.spans if span.start <= time < span.end), None)
    return Scene(
        tuple((name, task.places[OBJECTS.index(name)], done.get(name)) for name in lying),
        hand,
        nudge if hand is not None else (0, 0),
    )
