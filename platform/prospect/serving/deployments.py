"""The Serve application: a gateway, which owns the sockets, and engines, which own the sessions.

The process that builds the application, and the gateway, run no model: an engine's replica imports torch itself.
"""

import os
import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from prospect.cluster.common import ReportLine
from prospect.cluster.gpus import allot, probe_gpu
from prospect.cluster.runtime import reserved_device
from prospect.errors import ConfigError, FingerprintError, ProspectError
from prospect.model.saved import read_saved
from prospect.serving.api import build_api
from prospect.serving.config import ServeConfig
from prospect.serving.host import SessionHost
from prospect.serving.remote import MANY, QUIET, RemoteCore
from prospect.settings import with_setting
from prospect.vision.fingerprint import encoder_fingerprint
from prospect.vision.settings import VisionSettings

STICKY = RequestRouterConfig(
    # Serve imports a path where it routes; its annotation knows the serialised form only.
    request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",  # type: ignore[arg-type]
    request_router_kwargs={"num_virtual_nodes": 100, "num_fallback_replicas": 0},
)
"""A session's calls go to the one replica that its id hashes to, and never to another."""


class Engine(SessionHost):
    """A `SessionHost` over the served model, on whichever node Serve puts it."""

    def __init__(self, config: ServeConfig) -> None:
        import torch

        from prospect.model.checkpoint import load_model
        from prospect.serving.live_encoder import LiveEncoder, encoder_of
        from prospect.streaming.engine import StreamingEngine

        device = reserved_device()
        torch.set_num_threads(_threads(config.serving.num_replicas))
        loaded = load_model(find_model(config), cache=Path(config.storage.root) / "cache", device=device)
        equivalent_to = config.vision.equivalent_to
        encoder = encoder_of(loaded, equivalent_to, device)  # before the KV cache, which takes a share of what is left
        context = config.context.over(loaded.manifest.get("context", {}))
        accepted = {*equivalent_to, *({encoder.fingerprint} if encoder else ())}
        engine = StreamingEngine(loaded, context, config.streaming, accepted)
        super().__init__(engine, LiveEncoder(encoder) if encoder else None, config.serving.limits, config.serving.model)

    async def answer(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the host. A refusal travels as a value: Serve logs a stack trace for what is raised."""
        try:
            return await getattr(self, method)(*arguments)
        except ProspectError as refusal:
            return refusal


def _threads(replicas: int) -> int:
    """A replica's share of its node's cores, one of which is left to gateway and proxy; Ray itself gives it one."""
    return max(1, len(os.sched_getaffinity(0)) // replicas - 1)


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


def find_model(config: ServeConfig) -> Path:
    """Folder of the served model.

    Raises:
        ProspectError: there is no such model, or it was trained with another encoder than the one given.
    """
    from prospect.tracking.tracking import Tracking  # with MLflow

    folder = Tracking(config.tracking, config.storage.root).resolve(config.serving.model)
    if config.encoder_is_given:
        _require_encoder(folder, config.vision)
    return folder


def pin_model(config: ServeConfig) -> ServeConfig:
    """Name the served model's version in place of its alias: an engine that starts later serves the same one."""
    from prospect.tracking.tracking import Tracking  # with MLflow

    if not config.serving.model.startswith("models:/"):
        return config
    name, version = Tracking(config.tracking, config.storage.root).version_of(config.serving.model)
    return with_setting(config, "serving.model", f"models:/{name}/{version}")


def _require_encoder(folder: Path, vision: VisionSettings) -> None:
    given, trained = encoder_fingerprint(vision), read_saved(folder).fingerprint
    if trained not in {given, *vision.equivalent_to}:
        raise FingerprintError(
            f"`vision` ({vision.model}, {vision.weights}) is encoder {given}, and model {folder} was trained on "
            f"embeddings of {trained}: leave `vision` out, the model names its encoder; or declare them equivalent "
            f"with vision.equivalent_to=[{trained}]",
            field="vision",
        )


def build(config: ServeConfig, report: ReportLine = print) -> serve.Application:
    """Gateway and engines, bound and not started; connects to Ray, unless connected.

    Raises:
        ConfigError: there are fewer GPUs than engines, or torch finds none on a node that has them.
    """
    replicas = config.serving.num_replicas
    gpus = allot(config.cluster, "serve", report).gpus
    if 0 < gpus < replicas:
        raise ConfigError(
            f"`serving.num_replicas` ({replicas}) is more than the {gpus} GPUs that the engines may have: lower it, "
            "or give cluster.gpus=0",
            field="serving.num_replicas",
        )
    if gpus:
        probe_gpu()
    engine = EngineDeployment.options(
        num_replicas=replicas, ray_actor_options={"num_cpus": 0.5, "num_gpus": int(gpus > 0)}
    )
    gateway = GatewayDeployment.options(num_replicas=config.serving.num_gateways, ray_actor_options={"num_cpus": 0.1})
    return gateway.bind(engine.bind(config))


def open_port(config: ServeConfig) -> None:
    """Starts Serve on the configured address."""
    options = HTTPOptions(host=config.serving.host, port=config.serving.port)
    serve.start(proxy_location=ProxyLocation.EveryNode, http_options=options)


def serve_until_stopped(config: ServeConfig) -> None:
    """Serves until Ctrl-C.

    Raises:
        ProspectError: as `launch`.
    """
    url = launch(config)
    print(f"serve  {pin_model(config).serving.model} at {url}; Ctrl-C ends it", flush=True)
    try:
        while True:
            time.sleep(1)
    finally:
        serve.shutdown()


def launch(config: ServeConfig, name: str = "prospect", report: ReportLine = print) -> str:
    """Starts the application on the Ray that is connected, waits until it is ready, and returns its address.

    `serve.shutdown()` ends it.

    Raises:
        ProspectError: there is no such model, or not the GPUs for it.
    """
    find_model(config)
    config = pin_model(config)
    application = build(config, report)
    open_port(config)
    serve.run(application, name=name)
    return f"http://{config.serving.host}:{config.serving.port}"
