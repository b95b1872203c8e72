"""Settings of the sample corpus, and their validation."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from prospect.settings import Settings

Rate = Annotated[float, Field(ge=0, le=1)]
SecondsRange = tuple[Annotated[float, Field(ge=0, multiple_of=0.5)], Annotated[float, Field(ge=0, multiple_of=0.5)]]
"""Shortest and longest, seconds, multiples of 0.5; durations are uniform between them."""


class CorpusSettings(Settings):
    """The sample corpus: short drawn videos in which a recipe of 3 to 6 steps is carried out, with dialogue.

    Raises (on construction):
        pydantic.ValidationError: naming the field.
    """

    seed: int = 0
    """Seed of all draws."""
    num_train: Annotated[int, Field(ge=1)] = 560
    """Training videos."""
    num_validation: Annotated[int, Field(ge=0)] = 16
    """Videos whose goal, the set of (object, action) pairs, does not occur in training."""
    num_test: Annotated[int, Field(ge=0)] = 24
    """Videos whose goal does not occur in training; see `unseen_pairs` for harder ones."""
    image_size: Annotated[int, Field(ge=32, multiple_of=8)] = 96
    """Width and height, px; 4 x 2 places of two squares each, so that at
    an encoder input of 64 px a square is one 16-px patch."""
    source_fps: Annotated[int, Field(ge=4)] = 4
    """Pictures a second in the MP4."""
    min_steps: Annotated[int, Field(ge=1, le=6)] = 3
    """Steps of the shortest recipe."""
    max_steps: Annotated[int, Field(ge=1, le=6)] = 6
    """Steps of the longest recipe."""
    idle: SecondsRange = (2.0, 4.0)
    """Between the user's goal and the first thing that happens, and again after the last step, s."""
    step_duration: SecondsRange = (4.0, 8.0)
    """Length of a step, s. With these and the pauses assistants speak at 8 % of the frames, as in recordings."""
    pause: SecondsRange = (2.0, 4.0)
    """Between two steps that do not follow at one moment, s."""
    chain_rate: Rate = 0.2
    """Share of steps that start at the moment at which the step before completes."""
    deviation_rate: Rate = 0.25
    """Share of steps that are not the recipe's next one."""
    mistake_rate: Rate = 0.15
    """Share of pauses with a reach for an object that is not in the recipe."""
    unseen_pairs: Annotated[int, Field(ge=0, le=8)] = 0
    """(object, action) pairs, of 32, that only test videos show, each at least one; at most one an object."""
    shuffle_places: bool = False
    """True: objects lie anywhere. False: each has its own place on the table, which is easier to learn."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps ({self.min_steps}) must not exceed max_steps ({self.max_steps})")
        for name, least in (("idle", 1.0), ("step_duration", 1.0), ("pause", 1.0)):
            shortest, longest = getattr(self, name)
            if not least <= shortest <= longest:
                raise ValueError(f"{name}: ({shortest}, {longest}) must rise and start at {least} s or more")
        return self
