"""What benchmark clients send: drawn pictures with their embeddings, some of which the served model speaks at."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from prospect.benchmarks.engine.load import Workload
from prospect.benchmarks.engine.settings import EngineSuite
from prospect.corpus.plan import plan_corpus, scene_at
from prospect.corpus.scene import draw_scene
from prospect.corpus.settings import CorpusSettings
from prospect.vision.encoder import FrameEncoder

NUM_PICTURES = 96
_CORPUS = CorpusSettings(num_train=8, num_validation=0, num_test=8)
_SPOKEN = (0.1, 0.3)
"""Least and largest share of the pictures that the model speaks at."""


@dataclass(frozen=True)
class Footage:
    """Pictures in the order of what the model reads off them: it speaks at the last `num_spoken`.

    Attributes:
        pictures: JPEG.
        embeddings: float16 [N, I, D].
        num_spoken: pictures that the model speaks at.
        fingerprint: of the encoder.
    """

    pictures: list[bytes]
    embeddings: np.ndarray
    num_spoken: int
    fingerprint: str

    @property
    def threshold(self) -> float:
        """What the first number of a spoken picture's embedding exceeds."""
        silent, spoken = self._marks()[len(self.pictures) - self.num_spoken - 1 :][:2]
        return float(silent + spoken) / 2

    def index(self, number: int, speaks: bool) -> int:
        """Index of the picture that stands for frame `number` of a session; they repeat."""
        silent = len(self.pictures) - self.num_spoken
        return silent + number % self.num_spoken if speaks else number % silent

    def save(self, file: Path) -> None:
        """Write everything into one file."""
        sizes = np.array([len(picture) for picture in self.pictures])
        joined = np.frombuffer(b"".join(self.pictures), np.uint8)
        counts = np.array(self.num_spoken)
        name = np.array(self.fingerprint)
        np.savez(file, sizes=sizes, joined=joined, embeddings=self.embeddings, num_spoken=counts, fingerprint=name)

    @classmethod
    def load(cls, file: Path) -> "Footage":
        content = np.load(file)
        stops = np.cumsum(content["sizes"])
        joined = content["joined"].tobytes()
        pictures = [joined[stop - size : stop] for size, stop in zip(content["sizes"], stops, strict=True)]
        return cls(pictures, content["embeddings"], int(content["num_spoken"]), str(content["fingerprint"]))

    def _marks(self) -> np.ndarray:
        return self.embeddings[:, -1, 0].astype(np.float32)


def draw_footage(encoder: FrameEncoder) -> Footage:
    """Draw pictures of the sample corpus; those above the widest gap in what the model reads are spoken at."""
    videos = plan_corpus(_CORPUS)
    pictures = []
    for number in range(NUM_PICTURES):
        script = videos[number % len(videos)].script
        scene = scene_at(script, script.duration * (number + 0.5) / NUM_PICTURES)
        pictures.append(_to_jpeg(draw_scene(scene, _CORPUS.image_size)))
    embeddings = encoder.encode(np.stack([encoder.decode_image(picture) for picture in pictures]))
    order = np.argsort(embeddings[:, -1, 0], kind="stable")
    marks = embeddings[order, -1, 0].astype(np.float32)
    first, last = (round(NUM_PICTURES * (1 - share)) for share in reversed(_SPOKEN))
    gap = first + int(np.argmax(np.diff(marks[first - 1 : last])))
    return Footage([pictures[index] for index in order], embeddings[order], NUM_PICTURES - gap, encoder.fingerprint)


class ServedWorkload(Workload):
    """The frames and moments of all sessions, as pictures or as their embeddings.

    Args:
        footage: what the frames show.
        suite: rates and seed.
        sessions: S.
        frames: of every session.
    """

    def __init__(self, footage: Footage, suite: EngineSuite, sessions: int, frames: int) -> None:
        super().__init__(suite, sessions, suite.contexts[0], frames)
        self.footage = footage

    def picture(self, session: int, frame: int) -> int:
        """Index of the frame's picture."""
        return self.footage.index(session + frame, bool(self.speaks[session, frame]))

    def features(self, session: int, frame: int) -> np.ndarray:
        """[I, D] of a frame."""
        return self.footage.embeddings[self.picture(session, frame)]


def _to_jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG")
    return file.getvalue()
