"""The clip that a deployment is tested with: a video of the sample corpus. Needs no video library."""

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from prospect.corpus.plan import plan_corpus, scene_at
from prospect.corpus.scene import draw_scene
from prospect.corpus.settings import CorpusSettings
from prospect.dialogue.timeline import decision_time, num_frames
from prospect.protocol.messages import ModelCard

_CORPUS = CorpusSettings(
    num_train=1, num_validation=0, num_test=0, min_steps=3, max_steps=3, step_duration=(2.0, 3.0), pause=(1.0, 2.0)
)


@dataclass(frozen=True)
class Clip:
    """What a client sends.

    Attributes:
        goal: of the task.
        steps: of the recipe.
        frames: pictures as PNG, or embeddings float16 [I, D] for a server that takes no pictures.
        texts: of the user, by the frame that they stand before.
    """

    goal: str
    steps: tuple[str, ...]
    frames: tuple[bytes | np.ndarray, ...]
    texts: dict[int, str]


def draw_clip(model: ModelCard) -> Clip:
    """Draw a clip for a served model."""
    [video, *_] = plan_corpus(_CORPUS)
    script, dialogue = video.script, video.dialogue
    count = num_frames(script.duration)
    if model.accepts_images:
        scenes = (scene_at(script, decision_time(frame)) for frame in range(count))
        frames: tuple[bytes | np.ndarray, ...] = tuple(
            _to_png(draw_scene(scene, _CORPUS.image_size)) for scene in scenes
        )
    else:
        drawn = np.random.default_rng(video.seed)
        shape = (model.tokens_per_frame, model.dim)
        frames = tuple(drawn.standard_normal(shape).astype(np.float16) for _ in range(count))
    texts = {int(turn.time * model.fps): turn.text for turn in dialogue.turns if turn.role == "user"}
    return Clip(dialogue.goal, tuple(step.name for step in dialogue.steps), frames, texts)


def _to_png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
