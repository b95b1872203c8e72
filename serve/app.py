"""The served application: `serve run serve.app:app [key=value ...]`, keys as in configs/serve.yaml."""

import click
import ray
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation

from prospect.config import Config, load
from prospect.errors import ProspectError
from serve.engine import EngineDeployment
from serve.gateway import GatewayDeployment


def app(arguments: dict[str, str]) -> serve.Application:
    """What `serve run` calls. A mistake becomes one line and exit status 1, before anything has started."""
    try:
        config = load("serve", [f"{key}={value}" for key, value in arguments.items()])
        application = build(config)
    except ProspectError as error:
        raise click.ClickException(str(error)) from error
    if not ray.is_initialized():  # in `serve deploy` Serve runs already, and its own configuration names the port
        open_port(config)
    return application


def build(config: Config) -> serve.Application:
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


def open_port(config: Config) -> None:
    """Starts Serve, and Ray if need be, on the configured address."""
    options = HTTPOptions(host=config.serving.host, port=config.serving.port)
    serve.start(proxy_location=ProxyLocation.EveryNode, http_options=options)


def launch(config: Config, name: str = "prospect") -> str:
    """Starts the application on the Ray that is connected, waits until it is ready, and returns its address.

    `serve.shutdown()` ends it.

    Raises:
        ProspectError: there is no such model.
    """
    application = build(config)
    open_port(config)
    serve.run(application, name=name)
    return f"http://{config.serving.host}:{config.serving.port}"
