"""What the served application needs of its cluster, checked before any of it starts."""

import socket
from dataclasses import dataclass

from prospect.cluster.gpus import Allotment
from prospect.errors import ConfigError
from prospect.serving.access.origins import is_loopback
from prospect.serving.config import ServeConfig
from prospect.serving.store import KeyTable
from prospect.settings import is_given

ENGINE_CPUS, ENCODER_CPUS, GATEWAY_CPUS = 0.5, 0.2, 0.1


@dataclass(frozen=True)
class Shares:
    """What Serve is asked to reserve.

    Attributes:
        engine_gpus: of each engine.
        encoder_gpus: of each encoder.
        has_spare: whether one more of each fits, so that a new version starts before the old one stops.
    """

    engine_gpus: float = 0.0
    encoder_gpus: float = 0.0
    has_spare: bool = False


def most_engines(config: ServeConfig) -> int:
    """Engines that there are at most."""
    return config.serving.autoscaling.max_engines or config.serving.num_replicas


def check_autoscaling(config: ServeConfig) -> None:
    """Check that the numbers of engines fit each other.

    Raises:
        ConfigError: they do not, or are given with autoscaling off.
    """
    serving, scaling = config.serving, config.serving.autoscaling
    name = "serving.autoscaling"
    if scaling.max_engines is None:
        for key in type(scaling).model_fields:
            if key != "max_engines" and is_given(config, f"{name}.{key}"):
                raise ConfigError(
                    f"`{name}.{key}` does nothing while `{name}.max_engines` is null: give that too, or leave both out",
                    field=f"{name}.{key}",
                )
        return
    if scaling.min_engines > scaling.max_engines:
        raise ConfigError(
            f"`{name}.min_engines` ({scaling.min_engines}) must not exceed `{name}.max_engines` "
            f"({scaling.max_engines})",
            field=f"{name}.min_engines",
        )
    if not scaling.min_engines <= serving.num_replicas <= scaling.max_engines:
        raise ConfigError(
            f"`serving.num_replicas` ({serving.num_replicas}), the engines at the start, must be from "
            f"`{name}.min_engines` ({scaling.min_engines}) to `{name}.max_engines` ({scaling.max_engines})",
            field="serving.num_replicas",
        )
    if scaling.target_sessions > config.streaming.max_sessions:
        raise ConfigError(
            f"`{name}.target_sessions` ({scaling.target_sessions}) must not exceed `streaming.max_sessions` "
            f"({config.streaming.max_sessions}), the most that an engine takes",
            field=f"{name}.target_sessions",
        )


def check_store(config: ServeConfig, one_node: bool, needs_key: bool = False) -> None:
    """Check that the store of sessions and keys is one that all gateways reach.

    Args:
        config: with section `serving`.
        one_node: whether there is one, and no more can come.
        needs_key: whether the keys in the store are asked for.

    Raises:
        ConfigError: it is not.
    """
    serving = config.serving
    if serving.durability == "none":
        if serving.num_gateways > 1:
            raise ConfigError(
                f"`serving.num_gateways` ({serving.num_gateways}) must be 1 with serving.durability=none: gateways "
                "know of each other's sessions by the store",
                field="serving.num_gateways",
            )
        if not needs_key:
            return
    if store_url(config).startswith("sqlite") and not one_node:
        raise ConfigError(
            "`serving.store` must be a PostgreSQL database, postgresql://USER@HOST/NAME, on a cluster of several "
            "nodes: an SQLite file is on one of them" + ("" if needs_key else "; or give serving.durability=none"),
            field="serving.store",
        )


def check_keys(config: ServeConfig, bound: str | None) -> bool:
    """Check that a server which others reach has keys; returns whether its clients need one.

    Args:
        config: with section `serving`.
        bound: address that it listens on.

    Raises:
        ConfigError: keys are off on another address than loopback, or needed, and there is none.
    """
    required = config.serving.keys.required
    if is_loopback(bound):
        if not required:
            return False
    elif required is False:
        raise ConfigError(
            f"`serving.keys.required` (false) must be left out for a server that listens on {bound}, where others "
            "reach it: without keys it must listen on 127.0.0.1",
            field="serving.keys.required",
        )
    url = store_url(config)
    table = KeyTable(url)
    try:
        if all(row.revoked is not None for row in table.rows()):
            raise ConfigError(
                f"an API key is missing for a server that listens on {bound}: `prospect keys add NAME` makes one in "
                f"serving.store ({table.name})",
                field="serving.keys",
            )
    finally:
        table.close()
    return True


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


def shares(config: ServeConfig, allotted: Allotment, images: bool) -> Shares:
    """Divide what the application may ask for: on one GPU, engine and encoder share it.

    Raises:
        ConfigError: all engines and encoders need more than there is.
    """
    serving, engines = config.serving, most_engines(config)
    encoders = serving.num_encoders if images else 0
    cpus = engines * ENGINE_CPUS + encoders * ENCODER_CPUS + serving.num_gateways * GATEWAY_CPUS
    spare_cpus = cpus + ENGINE_CPUS + ENCODER_CPUS + GATEWAY_CPUS <= allotted.cpus
    if not allotted.gpus:
        return Shares(has_spare=spare_cpus)
    share = serving.gpus_per_encoder if images else 0.0
    engine = 1.0 if share == 1 else round(1.0 - share, 4)
    needed = engines * engine + encoders * share
    if engines > allotted.gpus or needed > allotted.gpus:
        what = "serving.num_replicas" if engines == serving.num_replicas else "serving.autoscaling.max_engines"
        beside = f" and `serving.num_encoders` ({serving.num_encoders})" if images else ""
        raise ConfigError(
            f"`{what}` ({engines}){beside} need more than the {allotted.gpus} GPUs that they may have: lower them, or "
            "give cluster.gpus=0",
            field=what,
        )
    has_spare = spare_cpus and needed + engine + share <= allotted.gpus and engines < allotted.gpus
    return Shares(engine, share, has_spare)


def check_port(host: str, port: int, key: str = "port") -> None:
    """Check that this machine's port is free: Serve's proxy would try again without end.

    Args:
        host: to listen on.
        port: of it.
        key: of section `serving`, which gives the port.

    Raises:
        ConfigError: it is taken, or the address is not of this machine.
    """
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return
    except OSError as error:
        raise cannot_listen(host, port, key, error) from error


def cannot_listen(host: str, port: int, key: str, error: OSError) -> ConfigError:
    """Make the error for a port of `serving` that is taken."""
    reason = str(error.strerror).partition(" (")[0]  # without the address, which follows
    return ConfigError(
        f"`serving.host`:`serving.{key}` ({host}:{port}) cannot be listened on ({reason}): end what listens "
        "there, or choose another port",
        field=f"serving.{key}",
    )
