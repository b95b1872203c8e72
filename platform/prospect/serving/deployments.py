"""The Serve application: a gateway, which owns the sockets, and engines, which own the sessions.

The process that builds the application, and the gateway, run no model: an engine's replica imports torch itself.
"""

import time
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from prospect.errors import ProspectError
from prospect.serving.api import build_api
from prospect.serving.config import ServeConfig
from prospect.serving.host import SessionHost
from prospect.serving.remote import MANY, QUIET, RemoteCore

STICKY = RequestRouterConfig(
    # Serve imports a path where it routes; its annotation knows the serialised form only.
    request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",  # type: ignore[arg-type]
    request_router_kwargs={"num_virtual_nodes": 100, "num_fallback_replicas": 0},
)
"""A session's calls go to the one replica that its id hashes to, and never to another."""


class Engine(SessionHost):
    """A `SessionHost` over the served model, on whichever node Serve puts it."""

    def __init__(self, config: ServeConfig) -> None:
        from prospect.model.checkpoint import load_model
        from prospect.serving.live_encoder import LiveEncoder, encoder_of
        from prospect.streaming.engine import StreamingEngine
        from prospect.tracking.tracking import Tracking

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


class Gateway:
    def __init__(self, engine: DeploymentHandle) -> None:
        self._engine = engine

    def __serve_build_asgi_app__(self) -> FastAPI:  # Serve's hook: called in the replica, after __init__
        return build_api(RemoteCore(self._engine))


GatewayDeployment = serve.deployment(name="Gateway", max_ongoing_requests=MANY, logging_config=QUIET)(
    serve.ingress()(Gateway)
)


def build(config: ServeConfig) -> serve.Application:
    """Gateway and engines, bound and not started.

    Raises:
        ProspectError: there is no such model.
    """
    from prospect.tracking.tracking import Tracking  # with MLflow

    Tracking(config.tracking, config.storage.root).resolve(config.serving.model)
    gpus = 1 if ray.is_initialized() and ray.cluster_resources().get("GPU", 0) >= config.serving.num_replicas else 0
    engine = EngineDeployment.options(
        num_replicas=config.serving.num_replicas, ray_actor_options={"num_cpus": 0.5, "num_gpus": gpus}
    )
    gateway = GatewayDeployment.options(ray_actor_options={"num_cpus": 0.1})
    return gateway.bind(engine.bind(config))


def open_port(config: ServeConfig) -> None:
    """Starts Serve, and Ray if need be, on the configured address."""
    options = HTTPOptions(host=config.serving.host, port=config.serving.port)
    serve.start(proxy_location=ProxyLocation.EveryNode, http_options=options)


def serve_until_stopped(config: ServeConfig) -> None:
    """Serves until Ctrl-C.

    Raises:
        ProspectError: there is no such model.
    """
    url = launch(config)
    print(f"serve  {config.serving.model} at {url}; Ctrl-C ends it", flush=True)
    try:
        while True:
            time.sleep(1)
    finally:
        serve.shutdown()


def launch(config: ServeConfig, name: str = "prospect") -> str:
    """Starts the application on the Ray that is connected, waits until it is ready, and returns its address.

    `serve.shutdown()` ends it.

    Raises:
        ProspectError: there is no such model.
    """
    application = build(config)
    open_port(config)
    serve.run(application, name=name)
    return f"http://{config.serving.host}:{config.serving.port}"
