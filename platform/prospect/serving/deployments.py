"""The Serve application: gateways, which own the sessions, encoders and engines, which can be replaced.

The process that builds the application, and the gateways, run no model: the other replicas import torch themselves.
"""

import asyncio
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation, RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from prospect.cluster.common import ReportLine
from prospect.cluster.gpus import allot, largest, present, probe_gpu
from prospect.cluster.runtime import reserved_device
from prospect.earlier import read_saved as read_earlier
from prospect.errors import ConfigError, FingerprintError
from prospect.model.saved import SavedModel, read_saved
from prospect.serving.api import build_api
from prospect.serving.config import ServeConfig
from prospect.serving.directory import ServeDirectory
from prospect.serving.encoders import RemoteEncoder
from prospect.serving.host import SessionHost
from prospect.serving.router import PinnedRouter
from prospect.serving.store import Store
from prospect.settings import with_setting
from prospect.streaming.settings import StreamingSettings
from prospect.vision.fingerprint import encoder_fingerprint
from prospect.vision.settings import VisionSettings

MANY = 10_000
"""Requests that Serve lets through at once: streams are requests that last, and the engine does the refusing."""
QUIET = LoggingConfig(enable_access_log=False)
"""Serve's access log has two lines for each frame."""
DRAINED_WITHIN_S = 30.0
"""Seconds that a replica on its way out has: the sessions of an engine move at once, a gateway's clients come back to
another one."""
PINNED = RequestRouterConfig(
    # Serve imports a path where it routes; its annotation knows the serialised form only.
    request_router_class=f"{PinnedRouter.__module__}.{PinnedRouter.__name__}",  # type: ignore[arg-type]
    request_router_kwargs={"num_virtual_nodes": 100, "num_fallback_replicas": 2},
)


@dataclass(frozen=True)
class Site:
    """What all processes of a served application know."""

    config: ServeConfig
    secret: str
    alone: bool
    """Whether there is one node and no more can come: its processes then talk over loopback."""
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
        return "127.0.0.1" if self.alone else ray.util.get_node_ip_address()


class Engine:
    """An `EngineWorker` over the served model, on whichever node Serve puts it."""

    def __init__(self, site: Site) -> None:
        import torch

        from prospect.model.checkpoint import load_model
        from prospect.serving.worker import EngineWorker
        from prospect.streaming.engine import StreamingEngine

        config, device = site.config, reserved_device()
        torch.set_num_threads(_threads(config.serving.num_replicas))
        folder = find_model(config)
        loaded = load_model(folder, cache=Path(config.storage.root) / "cache", device=device)
        context = config.context.over(loaded.manifest.get("context", {}))
        encoder = _encoder_settings(read_saved(folder))
        accepted = {*config.vision.equivalent_to, *([] if encoder is None else [encoder_fingerprint(encoder)])}
        engine = StreamingEngine(loaded, context, site.streaming, accepted)
        serving = config.serving
        images = encoder is not None and serving.num_encoders > 0
        self.worker = EngineWorker(engine, serving.model, images, serving.move_seconds)
        self._listening = _Listening(site, self.worker)

    async def where(self) -> tuple[str, str]:
        """The replica's id, and where it listens."""
        return await self._listening.where()

    def check_health(self) -> None:
        self.worker.check_health()


class Encoder:
    """An `EncoderWorker` over the model's own encoder."""

    def __init__(self, site: Site) -> None:
        import torch

        from prospect.serving.live_encoder import EncoderWorker, LiveEncoder, encoder_of

        device = reserved_device()
        torch.set_num_threads(_threads(site.config.serving.num_replicas))
        encoder = encoder_of(read_saved(find_model(site.config)), site.config.vision.equivalent_to, device)
        assert encoder is not None, "deployed where the model names its encoder"
        self._listening = _Listening(site, EncoderWorker(LiveEncoder(encoder)))

    async def where(self) -> tuple[str, str]:
        """The replica's id, and where it listens."""
        return await self._listening.where()


class Gateway:
    """A `SessionHost` behind HTTP and WebSocket."""

    def __init__(self, site: Site, engines: DeploymentHandle, encoders: DeploymentHandle | None) -> None:
        serving = site.config.serving
        store = None if serving.durability == "none" else Store(store_url(site.config))
        encoder = None if encoders is None else RemoteEncoder(ServeDirectory(encoders), site.secret)
        directory = ServeDirectory(engines)
        self._host = SessionHost(directory, site.secret, encoder, serving, store, site.address)

    def __serve_build_asgi_app__(self) -> FastAPI:  # Serve's hook: called in the replica, after __init__
        return build_api(self._host)

    def check_health(self) -> None:
        self._host.check_health()

    async def __del__(self) -> None:
        """Tell the clients to come back to another gateway."""
        await self._host.stop()


class Listener(Protocol):
    """What answers on a connection of its own."""

    async def start(self, host: str, secret: str) -> str:
        """Begin to listen on a node's address; returns "host:port"."""


class _Listening:
    """Begins to listen with the first question where, in the replica's event loop."""

    def __init__(self, site: Site, listener: Listener) -> None:
        self._site, self._listener = site, listener
        self._starting: asyncio.Task[str] | None = None

    async def where(self) -> tuple[str, str]:
        if self._starting is None:
            self._starting = asyncio.create_task(self._listener.start(self._site.address, self._site.secret))
        return serve.get_replica_context().replica_id.unique_id, await asyncio.shield(self._starting)


def _deployment(kind: type, name: str, router: RequestRouterConfig = PINNED) -> serve.Deployment:
    return serve.deployment(
        name=name,
        max_ongoing_requests=MANY,
        graceful_shutdown_timeout_s=DRAINED_WITHIN_S,
        logging_config=QUIET,
        request_router_config=router,
    )(kind)


EngineDeployment = _deployment(Engine, "Engine")
EncoderDeployment = _deployment(Encoder, "Encoder")
GatewayDeployment = _deployment(serve.ingress()(Gateway), "Gateway", RequestRouterConfig())


def _threads(replicas: int) -> int:
    """A replica's share of its node's cores, one of which is left to gateway and proxy; Ray itself gives it one."""
    return max(1, len(os.sched_getaffinity(0)) // replicas - 1)


def _encoder_settings(saved: SavedModel) -> VisionSettings | None:
    """Settings of the encoder that a model was trained on; None where it does not say which."""
    vision = saved.manifest.get("vision")
    return None if vision is None else VisionSettings(**read_earlier("vision", vision))


def store_url(config: ServeConfig) -> str:
    """URL of the session store.

    Raises:
        ConfigError: the storage root is a URL, where a file of SQLite cannot lie.
    """
    if config.serving.store is not None:
        return config.serving.store
    root = str(config.storage.root)
    if "://" in root:
        raise ConfigError(
            f"`serving.store` is missing: storage.root ({root}) is a URL, where no SQLite file can lie; give "
            "postgresql://USER@HOST/NAME, or serving.durability=none",
            field="serving.store",
        )
    return f"sqlite:///{root}/sessions.db"


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
    """Gateways, encoders and engines, bound and not started; connects to Ray, unless connected.

    Raises:
        ConfigError: there are fewer GPUs than the engines need, or torch finds none on a node that has them; the
            sessions would need a store that there is not.
    """
    serving = config.serving
    gpus = allot(config.cluster, "serve", report).gpus
    now = present()
    most, one = largest(now), len(ray.nodes()) == 1
    images = serving.num_encoders > 0 and _encoder_settings(read_saved(find_model(config))) is not None
    shares = _gpu_shares(config, gpus, images)
    _check_store(config, one and most in (now, None))
    if gpus:
        probe_gpu()
    site = Site(config, _secret(config), alone=one and most == now, gpus_per_engine=shares[0])
    engines = EngineDeployment.options(
        num_replicas=serving.num_replicas, ray_actor_options={"num_cpus": 0.5, "num_gpus": shares[0]}
    ).bind(site)
    encoders = None
    if images:
        options = {"num_cpus": 0.2, "num_gpus": shares[1]}
        encoders = EncoderDeployment.options(num_replicas=serving.num_encoders, ray_actor_options=options).bind(site)
    gateway = GatewayDeployment.options(num_replicas=serving.num_gateways, ray_actor_options={"num_cpus": 0.1})
    return gateway.bind(site, engines, encoders)


def _gpu_shares(config: ServeConfig, gpus: int, images: bool) -> tuple[float, float]:
    """GPUs of an engine and of an encoder: on one GPU they share it.

    Raises:
        ConfigError: they need more than there are.
    """
    if not gpus:
        return 0.0, 0.0
    serving, share = config.serving, config.serving.gpus_per_encoder if images else 0.0
    engine = 1.0 if share == 1 else 1.0 - share
    needed = serving.num_replicas * engine + (serving.num_encoders * share if images else 0)
    if serving.num_replicas > gpus or needed > gpus:
        encoders = f" and `serving.num_encoders` ({serving.num_encoders})" if images else ""
        raise ConfigError(
            f"`serving.num_replicas` ({serving.num_replicas}){encoders} need more than the {gpus} GPUs that they may "
            "have: lower them, or give cluster.gpus=0",
            field="serving.num_replicas",
        )
    return round(engine, 4), share


def _check_store(config: ServeConfig, one_node: bool) -> None:
    serving = config.serving
    if serving.durability == "none":
        if serving.num_gateways > 1:
            raise ConfigError(
                f"`serving.num_gateways` ({serving.num_gateways}) must be 1 with serving.durability=none: gateways "
                "know of each other's sessions by the store",
                field="serving.num_gateways",
            )
    elif store_url(config).startswith("sqlite") and not one_node:
        raise ConfigError(
            "`serving.store` must be a PostgreSQL database, postgresql://USER@HOST/NAME, on a cluster of several "
            "nodes: an SQLite file is on one of them; or give serving.durability=none",
            field="serving.store",
        )


def _secret(config: ServeConfig) -> str:
    """What the application's processes know of each other: the same after a redeployment, so that sessions can move.

    Where the storage root is a URL it is a new one each time, and sessions are restored from the store.
    """
    root = str(config.storage.root)
    if "://" in root:
        return secrets.token_hex(32)
    file = Path(root) / "serving.secret"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        written = file.with_suffix(f".{os.getpid()}")
        written.touch(mode=0o600)
        written.write_text(secrets.token_hex(32))
        with suppress(FileExistsError):  # another application has begun at the same moment
            os.link(written, file)
        written.unlink()
    return file.read_text()


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
