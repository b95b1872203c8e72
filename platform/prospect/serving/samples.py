"""Drawn tasks for the page: what a model that learned the sample corpus has never seen."""

import io
from functools import lru_cache
from typing import Any

from prospect.corpus.draw import DrawnVideo, encode_video, plan_corpus
from prospect.corpus.settings import CorpusSettings

SETTINGS = CorpusSettings(image_size=256)
"""Those of the demo, with larger pictures: the same tasks at the same times."""


@lru_cache(maxsize=1)
def _drawn() -> dict[str, DrawnVideo]:
    """Of each number of steps the shortest test video, by id."""
    found: dict[int, DrawnVideo] = {}
    for video in plan_corpus(SETTINGS):
        count = len(video.script.task.recipe)
        if video.dialogue.split == "test" and (
            count not in found or video.script.duration < found[count].script.duration
        ):
            found[count] = video
    return {found[count].dialogue.video_id: found[count] for count in sorted(found)}


def list_samples() -> list[dict[str, Any]]:
    """Goal, steps, length in seconds, and what the user says, for JSON."""
    return [
        {
            "id": video_id,
            "goal": video.dialogue.goal,
            "steps": [step.name for step in video.dialogue.steps],
            "seconds": video.script.duration,
            "says": [{"time": turn.time, "text": turn.text} for turn in video.dialogue.turns if turn.role == "user"],
        }
        for video_id, video in _drawn().items()
    ]


@lru_cache(maxsize=8)
def sample_video(video_id: str) -> bytes | None:
    """An MP4 of about 0.5 MB, drawn when it is first asked for; None: there is no such sample."""
    if video_id not in _drawn():
        return None
    file = io.BytesIO()
    encode_video(_drawn()[video_id], SETTINGS, file)
    return file.getvalue()
