"""Settings of scores and of the calibration of thresholds. Imports no scipy: every job's configuration loads it."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from prospect.dialogue.state import StatePolicy
from prospect.llm.settings import EndpointSettings
from prospect.settings import Place, Settings
from prospect.similarity import SimilaritySettings
from prospect.streaming.waiting import WaitingSettings

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


JUDGE_PROMPT = 1
"""Version of the judge's prompt, which is part of every result: raise it with any change of its words."""


ASKED = ("base_url", "model", "temperature", "max_tokens", "extra_body")
"""The settings on which a single rating depends."""


class JudgeSettings(EndpointSettings):
    """A language model that rates dialogues beside their references."""

    section: ClassVar[str] = "evaluation.judge"
    subjects: ClassVar[str] = "ratings"

    temperature: Annotated[float, Field(ge=0, le=2)] | None = 0.5
    """Above 0, so that repetitions differ. None: not sent, for models that refuse it."""
    max_tokens: Annotated[int, Field(gt=0)] | None = 2048
    """Longest answer, in tokens: a comparison in words, and four numbers. None: not sent, for models that refuse it."""
    repetitions: Annotated[int, Field(ge=1)] = 3
    """How often each dialogue is rated; its scores are averaged."""
    systems: tuple[str, ...] = ()
    """Systems of the table that are rated beside the model, as `[oracle,periodic]`."""

    def rules(self) -> dict[str, Any]:
        """What ratings depend on; limits, retries of requests and prices change none."""
        decisive = {*ASKED, "max_retries", "repetitions", "systems"}
        return {**self.model_dump(mode="json", include=decisive), "prompt": JUDGE_PROMPT}


class PacedSettings(WaitingSettings):
    """The latency-aware mode: frames arrive as in live sessions, and wait or are dropped while the engine is busy."""

    speed: Annotated[float, Field(gt=0)] = 1.0
    """How many times faster than in life the videos run; the limits of waiting stay in seconds of the clock."""
    sessions: Annotated[int, Field(ge=1)] = 1
    """Sessions that run at once, all of them until the last dialogue has ended."""


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


_NO_RULES = {"model", "split", "allow_seen", "similarity", "paced", "judge", "report"}
"""Settings of an evaluation that change no score, or that its lineage has elsewhere."""


class EvaluationSettings(Settings):
    """What is scored, and how."""

    model: Place | None = None
    """A folder, `models:/NAME@ALIAS` or `models:/NAME/VERSION`; default: the newest candidate of `model.name`."""
    split: str = "test"
    """The dialogues that are streamed."""
    also: tuple[Literal["untracked", "told"], ...] = ()
    """More rows in the table, each of which streams all dialogues once more: the model without a task state, and the
    model with the reference's state instead of its own."""
    sweep: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """Thresholds at which the dialogues are streamed too, for curves of F1, precision and recall over the threshold;
    each one streams all dialogues twice."""
    allow_seen: bool = False
    """Score videos that the model was trained or validated on: the result is marked, and promotes nothing."""
    paced: PacedSettings | None = None
    """The latency-aware mode, whose scores depend on this machine's speed: nothing is cached or promoted; null: off."""
    matching: MatchingSettings = MatchingSettings()
    """Assignment of utterances to references."""
    similarity: SimilaritySettings = SimilaritySettings()
    """The sentence encoder."""
    similarity_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """A paired utterance counts as correct above this."""
    event_tolerance: Annotated[float, Field(ge=0)] = 2.5
    """Seconds by which a transition may miss its reference."""
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
    judge: JudgeSettings | None = None
    """A language model that rates the dialogues, by the name that its endpoint gives it in `evaluation.judge.model`.
    None: nothing is rated."""

    @model_validator(mode="after")
    def _paced_alone(self) -> Self:
        if self.paced is not None and (self.also or self.sweep):
            raise ValueError("paced streams each dialogue once, in real time: leave out `also` and `sweep`")
        return self

    def rules(self) -> dict[str, Any]:
        """What scores depend on, beside model, data, sentence encoder and pace."""
        rules = self.model_dump(mode="json", exclude=_NO_RULES)
        return rules if self.judge is None else {**rules, "judge": self.judge.rules()}


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
