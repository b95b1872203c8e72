"""The Serve deployment that owns sessions.

The process that builds the application imports this module too, and runs no model: a replica imports torch itself.
"""

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig

from prospect.config import Config
from prospect.errors import ProspectError
from serve.host import SessionHost
from serve.remote import MANY, QUIET

STICKY = RequestRouterConfig(
    # Serve imports a path where it routes; its annotation knows the serialised form only.
    request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",  # type: ignore[arg-type]
    request_router_kwargs={"num_virtual_nodes": 100, "num_fallback_replicas": 0},
)
"""A session's calls go to the one replica that its id hashes to, and never to another."""


class Engine(SessionHost):
    """A `SessionHost` over the served model, on whichever node Serve puts it."""

    def __init__(self, config: Config) -> None:
        from prospect.model.checkpoint import load_model
        from prospect.streaming.engine import StreamingEngine
        from prospect.tracking.tracking import Tracking
        from serve.encoder import LiveEncoder, encoder_of

        folder = Tracking(config.tracking, config.storage.root).resolve(config.serving.model)
        loaded = load_model(folder, cache=Path(config.storage.root) / "cache")
        equivalent_to = config.vision.equivalent_to
        encoder = encoder_of(loaded, equivalent_to)
        context = config.context.over(loaded.manifest.get("context", {}))
        accepted = {*equivalent_to, *({encoder.fingerprint} if encoder else ())}
        engine = StreamingEngine(loaded, context, config.streaming, accepted)
        super().__init__(engine, LiveEncoder(encoder) if encoder else None, config.serving.limits)

    async def answer(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the host. A refusal travels as a value: Serve logs a stack trace for what is raised."""
        try:
            return await getattr(self, method)(*arguments)
        except ProspectError as refusal:
            return refusal


EngineDeployment = serve.deployment(
    name="Engine", max_ongoing_requests=MANY, request_router_config=STICKY, logging_config=QUIET
)(Engine)
