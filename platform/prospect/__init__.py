"""Train and serve a proactive streaming video assistant with dialogue state tracking."""

import logging
from importlib import import_module, metadata
from typing import Any

# Whatever imports peft imports bitsandbytes, which tells every CPU process of a kernel that it could not download.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_EXPORTS = {
    "AsyncProspectClient": "prospect.client",
    "Config": "prospect.config.schema",
    "Dialogue": "prospect.dialogue.schema",
    "EmbeddingStore": "prospect.data.embeddings",
    "LiveSession": "prospect.client",
    "ProspectClient": "prospect.client",
    "SessionSpec": "prospect.streaming.types",
    "StreamingEngine": "prospect.streaming.engine",
    "load_config": "prospect.cli",
    "load_dialogues": "prospect.data.sources",
    "load_encoder": "prospect.vision.encoder",
    "load_model": "prospect.model.checkpoint",
}
"""Where `from prospect import NAME` finds a name, and what it is called there if otherwise. Nothing is imported before
it is asked for, so that the client brings no torch along."""

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("prospect")
    if name not in _EXPORTS:
        raise AttributeError(f"module 'prospect' has no attribute {name!r}")
    module, _, original = _EXPORTS[name].partition(":")
    return getattr(import_module(module), original or name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
