"""The Serve application: gateways, which own the sessions, encoders and engines, which can be replaced.

The process that builds the application, and the gateways, run no model: the other replicas import torch themselves.
"""

import asyncio
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, HTTPOptions, ProxyLocation, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from prospect.cluster.common import ReportLine
from prospect.cluster.gpus import allot, largest, present, probe_gpu
from prospect.cluster.runtime import engine_threads, owns_ray, reserved_device
from prospect.model.saved import read_saved
from prospect.serving.access.access import Access
from prospect.serving.access.keyring import Keyring
from prospect.serving.api import build_api
from prospect.serving.autoscaling import SessionPolicy
from prospect.serving.config import ServeConfig
from prospect.serving.directory import ServeDirectory, until_leaving
from prospect.serving.encoders import RemoteEncoder
from prospect.serving.host import SessionHost
from prospect.serving.own_port import OwnPort
from prospect.serving.ports import bound_address, keep_replica_port_to_loopback
from prospect.serving.proxy import WATCHED, WRAPPED
from prospect.serving.replica import observe_replica
from prospect.serving.requirements import (
    ENCODER_CPUS,
    ENGINE_CPUS,
    GATEWAY_CPUS,
    check_autoscaling,
    check_keys,
    check_port,
    check_store,
    most_engines,
    shares,
    store_url,
)
from prospect.serving.router import GatewayRouter, PinnedRouter
from prospect.serving.secret import shared_secret
from prospect.serving.served_model import encoder_settings, find_model, pin_model
from prospect.serving.store import KeyTable, Store
from prospect.streaming.settings import StreamingSettings
from prospect.vision.fingerprint import encoder_fingerprint

LOOPBACK = "127.0.0.1"
MANY = 10_000
"""Requests that Serve lets through at once: streams are requests that last, and the engine does the refusing."""
QUIET = LoggingConfig(enable_access_log=False)
"""Serve's access log has two lines for each frame."""
DRAINED_WITHIN_S = 30.0
"""Seconds that a replica on its way out has: the sessions of an engine move at once, a gateway's clients come back to
another one."""
DRAIN_CHECKED_EVERY_S = 0.3
UNROUTED_WITHIN_S = 0.3
"""Seconds within which the proxies know of a gateway on its way out; until then they send it requests."""
REPORTED_EVERY_S = 2.0
"""Seconds between two reports of an engine's load to Serve's controller."""
SPARE_PERCENT = 1
"""Of a deployment's replicas that start before an old version's stop; Serve rounds up, to one."""


@dataclass(frozen=True)
class Site:
    """What all processes of a served application know."""

    config: ServeConfig
    secret: str = field(repr=False)
    alone: bool
    """Whether there is one node and no more can come: its processes then talk over loopback."""
    bound: str | None
    """Address that Serve's HTTP proxies listen on."""
    needs_key: bool
    """Whether clients need an API key."""
    gpus_per_engine: float = 0.0
    """Less than 1 where an engine shares its GPU with an encoder."""

    @property
    def streaming(self) -> StreamingSettings:
        """Of an engine: its KV cache leaves an encoder on the same GPU its share of the memory."""
        streaming = self.config.streaming
        if not self.gpus_per_engine:
            return streaming
        return streaming.model_copy(update={"memory_share": min(streaming.memory_share, self.gpus_per_engine)})

    @property
    def address(self) -> str:
        """Of this node."""
        return LOOPBACK if self.alone else ray.util.get_node_ip_address()


class Engine:
    """An `EngineWorker` over the served model, on whichever node Serve puts it."""

    def __init__(self, site: Site) -> None:
        import torch

        from prospect.model.checkpoint import load_model
        from prospect.serving.worker import EngineWorker
        from prospect.streaming.engine import StreamingEngine

        config, device = site.config, reserved_device()
        torch.set_num_threads(engine_threads(most_engines(config)))
        folder = find_model(config)
        loaded = load_model(folder, cache=Path(config.storage.root) / "cache", device=device)
        context = config.context.over(loaded.manifest.get("context", {}))
        encoder = encoder_settings(read_saved(folder))
        accepted = {*config.vision.equivalent_to, *([] if encoder is None else [encoder_fingerprint(encoder)])}
        engine = StreamingEngine(loaded, context, site.streaming, accepted)
        serving = config.serving
        images = encoder is not None and serving.num_encoders > 0
        self.worker = EngineWorker(engine, serving.model, images, serving.move_seconds)
        observe_replica(self.worker, model=serving.model, device=device)
        self._listening = _Listening(site, self.worker)

    async def where(self) -> tuple[str, str]:
        """The replica's id, and where it listens."""
        return await self._listening.where()

    def check_health(self) -> None:
        self.worker.check_health()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's hook: what `SessionPolicy` decides by."""
        return self.worker.load()


class Encoder:
    """An `EncoderWorker` over the model's own encoder."""

    def __init__(self, site: Site) -> None:
        import torch

        from prospect.serving.live_encoder import EncoderWorker, LiveEncoder, encoder_of

        device = reserved_device()
        torch.set_num_threads(engine_threads(most_engines(site.config)))
        encoder = encoder_of(read_saved(find_model(site.config)), site.config.vision.equivalent_to, device)
        assert encoder is not None, "deployed where the model names its encoder"
        live = observe_replica(LiveEncoder(encoder), device=device)
        self._listening = _Listening(site, EncoderWorker(live))

    async def where(self) -> tuple[str, str]:
        """The replica's id, and where it listens."""
        return await self._listening.where()


class Gateway:
    """A `SessionHost` behind HTTP and WebSocket."""

    def __init__(self, site: Site, engines: DeploymentHandle, encoders: DeploymentHandle | None) -> None:
        keep_replica_port_to_loopback()
        serving = site.config.serving
        store = None if serving.durability == "none" else Store(store_url(site.config))
        encoder = None if encoders is None else RemoteEncoder(ServeDirectory(encoders), site.secret)
        self._host = SessionHost(ServeDirectory(engines), site.secret, encoder, serving, store, site.address)
        keys = KeyTable(store_url(site.config)) if site.needs_key else None
        self._access = Access(serving, Keyring(keys) if keys else None, site.bound)
        direct = serving.direct_port
        self._own_port = None if direct is None else OwnPort(site.bound or LOOPBACK, direct)
        observe_replica(self._host, model=serving.model)
        self._stopped: asyncio.Task[None] | None = None
        self._leaving = asyncio.create_task(self._leave())  # Serve makes the replica in its event loop

    def __serve_build_asgi_app__(self) -> FastAPI:  # Serve's hook: called in the replica, after __init__
        api = build_api(self._host, self._access)
        if self._own_port is not None:
            self._own_port.open(api)
        return api

    def check_health(self) -> None:
        if self._leaving.done():
            self._leaving.result()
            raise RuntimeError("this gateway has stopped")
        if self._own_port is not None:
            self._own_port.check_health()
        self._host.check_health()

    async def _leave(self) -> None:
        """Stop as soon as Serve wants this replica to: it waits for the streams, which would go on without end."""
        replica = serve.get_replica_context().replica_id
        itself = serve.get_deployment_handle(replica.deployment_id.name, replica.deployment_id.app_name)
        await until_leaving(itself, replica.unique_id)
        await asyncio.sleep(UNROUTED_WITHIN_S)
        await self._stop()

    async def _stop(self) -> None:
        """Tell the clients to come back to another gateway."""
        if self._stopped is None:
            port, stop = self._own_port, self._host.stop
            self._stopped = asyncio.create_task(stop() if port is None else port.end(stop))
        await asyncio.shield(self._stopped)

    async def __del__(self) -> None:
        self._leaving.cancel()
        await self._stop()


class Listener(Protocol):
    """What answers on a connection of its own."""

    async def start(self, host: str, secret: str) -> str:
        """Begin to listen on a node's address; returns "host:port"."""


class _Listening:
    """Begins to listen with the first question where, in the replica's event loop."""

    def __init__(self, site: Site, listener: Listener) -> None:
        keep_replica_port_to_loopback()
        self._site, self._listener = site, listener
        self._starting: asyncio.Task[str] | None = None

    async def where(self) -> tuple[str, str]:
        if self._starting is None:
            self._starting = asyncio.create_task(self._listener.start(self._site.address, self._site.secret))
        return serve.get_replica_context().replica_id.unique_id, await asyncio.shield(self._starting)


def _router(kind: type, **options: Any) -> RequestRouterConfig:
    # Serve imports a path where it routes; its annotation knows the serialised form only.
    path: Any = f"{kind.__module__}.{kind.__name__}"
    return RequestRouterConfig(request_router_class=path, request_router_kwargs=options)


def _deployment(kind: type, name: str, router: RequestRouterConfig) -> serve.Deployment:
    return serve.deployment(
        name=name,
        max_ongoing_requests=MANY,
        graceful_shutdown_timeout_s=DRAINED_WITHIN_S,
        graceful_shutdown_wait_loop_s=DRAIN_CHECKED_EVERY_S,
        logging_config=QUIET,
        request_router_config=router,
    )(kind)


_PINNED = _router(PinnedRouter, num_virtual_nodes=100, num_fallback_replicas=2)
EngineDeployment = _deployment(Engine, "Engine", _PINNED)
EncoderDeployment = _deployment(Encoder, "Encoder", _PINNED)
GatewayDeployment = _deployment(serve.ingress()(Gateway), "Gateway", _router(GatewayRouter))


def build(config: ServeConfig, report: ReportLine = print) -> serve.Application:
    """Gateways, encoders and engines, bound and not started; connects to Ray, unless connected.

    Raises:
        ConfigError: there are fewer GPUs than the engines need, or torch finds none on a node that has them; the
            sessions would need a store that there is not, or the server an API key.
    """
    serving = config.serving
    check_autoscaling(config)
    allotted = allot(config.cluster, "serve", report)
    now = present()
    most, one = largest(now), len(ray.nodes()) == 1
    images = serving.num_encoders > 0 and encoder_settings(read_saved(find_model(config))) is not None
    share = shares(config, allotted, images)
    needs_key = check_keys(config, bound := bound_address(config))
    check_store(config, one and most in (now, None), needs_key)
    if allotted.gpus:
        probe_gpu()
    secret = shared_secret(str(config.storage.root))
    site = Site(config, secret, one and most == now, bound, needs_key, gpus_per_engine=share.engine_gpus)
    surge = SPARE_PERCENT if share.has_spare else 0
    options = {"num_cpus": ENGINE_CPUS, "num_gpus": share.engine_gpus}
    engine = EngineDeployment.options(**_numbers(config), max_surge_percent=surge, ray_actor_options=options)
    engines = engine.bind(site)
    encoders = None
    if images:
        options = {"num_cpus": ENCODER_CPUS, "num_gpus": share.encoder_gpus}
        encoders = EncoderDeployment.options(
            num_replicas=serving.num_encoders, max_surge_percent=surge, ray_actor_options=options
        ).bind(site)
    gateway = GatewayDeployment.options(
        num_replicas=serving.num_gateways, max_surge_percent=surge, ray_actor_options={"num_cpus": GATEWAY_CPUS}
    )
    return gateway.bind(site, engines, encoders)


def _numbers(config: ServeConfig) -> dict[str, Any]:
    """Serve's options for the number of engines."""
    serving, scaling = config.serving, config.serving.autoscaling
    if scaling.max_engines is None:
        return {"num_replicas": serving.num_replicas}
    limits = {"target_sessions": scaling.target_sessions, "max_step_s": scaling.max_step_s}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the interval, which is to become a variable of all Ray
        return {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=scaling.min_engines,
                initial_replicas=serving.num_replicas,
                max_replicas=scaling.max_engines,
                metrics_interval_s=REPORTED_EVERY_S,
                look_back_period_s=5 * REPORTED_EVERY_S,
                upscale_delay_s=scaling.upscale_delay_s,
                downscale_delay_s=scaling.downscale_delay_s,
                policy=AutoscalingPolicy(policy_function=SessionPolicy, policy_kwargs=limits),
            )
        }


def open_port(config: ServeConfig, elsewhere: bool = False) -> None:
    """Start Serve on the configured address.

    Args:
        config: with section `serving`.
        elsewhere: whether the cluster gets this package from the job alone, so that Serve's own processes have it not.

    Raises:
        ConfigError: another program listens on the port.
    """
    if owns_ray() and not serve.status().proxies:  # else the port may be taken by this cluster's own Serve
        check_port(config.serving.host, config.serving.port)
        if config.serving.direct_port is not None:
            check_port(config.serving.host, config.serving.direct_port, "direct_port")
    options = HTTPOptions(host=config.serving.host, port=config.serving.port)
    environment = {"env_vars": WATCHED if elsewhere else WATCHED | WRAPPED}
    serve.start(
        proxy_location=ProxyLocation.EveryNode, http_options=options, controller_options={"runtime_env": environment}
    )


def end_applications() -> None:
    """End what Serve runs, in time: `serve.shutdown` ends the proxies before the gateways have told their clients."""
    with suppress(Exception):  # of a Serve that is broken, or gone
        for name in serve.status().applications:
            serve.delete(name)


def serve_until_stopped(config: ServeConfig) -> None:
    """Serves until Ctrl-C.

    Raises:
        ProspectError: as `launch`.
    """
    url = launch(config)
    direct = config.serving.direct_port
    where = url if direct is None else f"{url}, without Serve's proxy at http://{config.serving.host}:{direct}"
    print(f"serve  {pin_model(config).serving.model} at {where}; Ctrl-C ends it", flush=True)
    try:
        while True:
            time.sleep(1)
    finally:
        end_applications()
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
