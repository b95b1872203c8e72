"""How records become training clips, and what the losses see of a clip. Imports no torch."""

from typing import Literal

from pydantic import Field

from prospect.settings import Settings


class ClipSettings(Settings):
    """How dialogues are cut into training clips."""

    random_start_share: float = Field(default=0.3, ge=0, le=1)
    """Share of dialogues that are cut once more at a random frame, so that a refreshed context is not new."""
    summaries: bool = False
    """Ask for a summary of the progress where a clip ends, as a session does whose context is full: behind every clip
    that ends before its dialogue does, and behind `summary_share` of the others. A clip that starts later than its
    dialogue then has the progress known there in its context. Records without `progress` have no summary."""
    summary_share: float = Field(default=0.3, ge=0, le=1)
    """Share of the clips at a dialogue's end that are asked for a summary too."""
    seed: int = 0
    """Of the draws above; another one cuts other clips."""
    draws: Literal[1, 2] = 2
    """What a clip's draws are keyed by, beside the seed: data set, video, dialogue and clip (2), or dialogue and clip
    alone (1), as in earlier versions, for which all dialogues of the same id drew the same."""


class LabelSamplingSettings(Settings):
    """What the losses see of a clip in one epoch; redrawn in the next."""

    watch_only_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of clips shown without deltas and utterances, for the state head alone: with them in sight it can copy
    the state from text that is always right in training, and has not learned to watch when it is wrong."""
    negative_rate: float = Field(default=0.1, gt=0, le=1)
    """rho: share of a clip's silent frames that are drawn, one at least."""
    negative_margin: int = Field(default=1, ge=0)
    """Frames on either side of an event that are never negatives."""
    seed: int = 0
    """Of the draws above, with the epoch."""
