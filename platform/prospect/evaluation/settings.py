"""Settings of scores and of the calibration of thresholds. Imports no scipy: every job's configuration loads it."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from prospect.dialogue.state import StatePolicy
from prospect.settings import Place, Settings
from prospect.similarity import SimilaritySettings

MatcherMode = Literal["compat", "corrected"]


WindowSeconds = tuple[float, float]
"""(left, right): the reference may lie in [generated + left, generated + right] seconds."""


WINDOWS: dict[str, WindowSeconds] = {
    "narration": (-2.5, 2.5),
    "ego4d": (-4.0, 8.5),
    "epickitchens": (-1.5, 3.0),
    "holoassist": (-1.5, 2.5),
    "egoexolearn": (-2.0, 3.5),
    "assembly101": (-2.0, 4.0),
    "wtag": (-3.0, 6.0),
}
"""Published windows: a quarter of the mean talk interval back, half of it ahead."""


DEFAULT_WINDOW: WindowSeconds = (-2.5, 2.5)


class MatchingSettings(Settings):
    """The turn matcher; the defaults are those of the published numbers, but for `mode`."""

    mode: MatcherMode = "corrected"
    """`compat` for comparison with published figures: equal to the published matcher for equal similarities. Where a
    model repeats a reference's very words at its own frame, the published code itself counts them or not by chance."""
    power: Annotated[float, Field(gt=0)] = 1.5
    """Exponent of the distance in frames."""
    weight: Annotated[float, Field(ge=0)] = 0.3
    """Cost of the longest distance that the window allows; a wholly unlike sentence costs 1."""
    windows: dict[str, WindowSeconds] = Field(default_factory=dict)
    """(left, right) in seconds by dataset, before the published ones; `default` is for all others."""

    @field_validator("windows")
    @classmethod
    def _contain_zero(cls, windows: dict[str, WindowSeconds]) -> dict[str, WindowSeconds]:
        for dataset, (left, right) in windows.items():
            if not left <= 0 <= right:
                raise ValueError(f"window of {dataset}: ({left:g}, {right:g}) must contain 0, as (-2.5, 2.5) does")
        return windows

    def window(self, dataset: str) -> WindowSeconds:
        """The window of a dataset; as in the published code, a known name is looked for inside `dataset`."""
        default = self.windows.get("default", DEFAULT_WINDOW)
        name = _letters(dataset)
        known = self.windows | {key: window for key, window in WINDOWS.items() if key not in self.windows}
        return next((window for key, window in known.items() if _letters(key) in name), default)


def _letters(name: str) -> str:
    """`EPIC_Kitchens` and `epickitchens` are one dataset."""
    return "".join(filter(str.isalnum, name.lower()))


class ReportSettings(Settings):
    """The HTML page that an evaluation writes."""

    enabled: bool = True
    """False: no page."""
    worst: int = Field(default=5, ge=0)
    """Dialogues with the lowest scores that are shown with pictures."""
    best: int = Field(default=3, ge=0)
    """Dialogues with the highest scores that are shown with pictures."""
    timelines: int = Field(default=40, ge=0)
    """Most dialogues that have a timeline; all are in the list."""
    pictures: int = Field(default=24, ge=1)
    """Most pictures of one dialogue."""
    megabytes: float = Field(default=6.0, ge=0)
    """Most that all pictures of the page take; 0: a page without pictures."""


class EvaluationSettings(Settings):
    """What is scored, and how."""

    model: Place | None = None
    """A folder, `models:/NAME@ALIAS` or `models:/NAME/VERSION`; default: the newest candidate of `model.name`."""
    split: str = "test"
    """The dialogues that are streamed."""
    allow_seen: bool = False
    """Score videos that the model was trained or validated on: the result is marked, and promotes nothing."""
    matching: MatchingSettings = MatchingSettings()
    """Assignment of utterances to references."""
    similarity: SimilaritySettings = SimilaritySettings()
    """The sentence encoder."""
    similarity_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """A paired utterance counts as correct above this."""
    event_tolerance: Annotated[float, Field(ge=0)] = 2.5
    """WindowSeconds by which a transition may miss its reference."""
    state_policy: StatePolicy = "strict"
    """How the reference's transitions are replayed."""
    bootstrap_samples: Annotated[int, Field(gt=0)] = 1000
    """Draws behind a confidence interval."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Share of the draws that an interval holds."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the draws."""
    report: ReportSettings = ReportSettings()
    """The HTML page beside the result; it changes no score."""


class CalibrationSettings(Settings):
    """How the thresholds that travel with a model are found."""

    enabled: bool = True
    """False: the model has no thresholds of its own, and whoever uses it configures them."""
    grid: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    """The thresholds that are tried, rising."""
    videos: int = Field(default=8, ge=1)
    """Most validation videos of each data set; a dialogue of each is streamed, at all thresholds."""
    minutes: float = Field(default=5.0, gt=0)
    """Most of one such video that is streamed."""
    min_events: int = Field(default=20, ge=1)
    """Turns, or transitions, that the reference of a data set must have for thresholds of its own."""
    tolerance: float = Field(default=0.01, ge=0, le=1)
    """By how much F1 at the first maximum may lie below the best one."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not self.grid or list(self.grid) != sorted(set(self.grid)) or not 0 <= self.grid[0] <= self.grid[-1] <= 1:
            raise ValueError(f"grid: {list(self.grid)} must be probabilities that rise, as (0.2, 0.4, 0.6) do")
        return self
