"""How labelling finds out when the steps of a recipe happened."""

from typing import Literal

from pydantic import Field

from prospect.data.labels.aligner import AlignerSettings
from prospect.data.labels.llm.settings import LLMSettings
from prospect.settings import Settings
from prospect.similarity import SimilaritySettings


class LabelSettings(Settings):
    """How steps get their times from annotation lines."""

    mapper: Literal["aligner", "llm"] = "aligner"
    """`aligner`: sentence similarity and dynamic programming; `llm`: a language model behind an OpenAI-compatible
    endpoint maps lines to steps."""
    videos_per_block: int = Field(default=16, ge=1)
    """Videos that one task of Ray Data labels."""
    aligner: AlignerSettings = AlignerSettings()
    similarity: SimilaritySettings = SimilaritySettings()
    """The aligner's sentence encoder."""
    llm: LLMSettings = LLMSettings()
