"""The served application: `serve run serve.app:app [key=value ...]`, keys as in configs/serve.yaml."""

import click
import ray
from ray import serve

from prospect.config.load import load
from prospect.errors import ProspectError
from prospect.serving.config import ServeConfig
from prospect.serving.deployments import build, open_port


def app(arguments: dict[str, str]) -> serve.Application:
    """What `serve run` calls. A mistake becomes one line and exit status 1, before anything has started."""
    try:
        config = load("serve", [f"{key}={value}" for key, value in arguments.items()], ServeConfig)
        application = build(config)
    except ProspectError as error:
        raise click.ClickException(str(error)) from error
    if not ray.is_initialized():  # in `serve deploy` Serve runs already, and its own configuration names the port
        open_port(config)
    return application
