"""Mapping annotation lines to steps by a language model behind an OpenAI-compatible endpoint."""

from prospect.data.labels.llm.errors import BatchError, EndpointError
from prospect.data.labels.llm.mapping import map_videos
from prospect.data.labels.llm.prompt import MappingRequest
from prospect.data.labels.llm.report import MappingReport, MappingResult, Usage
from prospect.data.labels.llm.settings import LLMSettings

__all__ = [
    "BatchError",
    "EndpointError",
    "LLMSettings",
    "MappingReport",
    "MappingRequest",
    "MappingResult",
    "Usage",
    "map_videos",
]
