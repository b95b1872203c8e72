"""The served application: `serve run serve.app:app [key=value ...]`, keys as in configs/serve.yaml."""

import click
import ray
from ray import serve
from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args

from prospect.config.load import load
from prospect.errors import ProspectError
from prospect.serving.config import ServeConfig
from prospect.serving.deployments import build, find_model, open_port, pin_model


def app(arguments: dict[str, str]) -> serve.Application:
    """What `serve run` calls. A mistake becomes one line and exit status 1."""
    try:
        config = load("serve", [f"{key}={value}" for key, value in arguments.items()], ServeConfig)
        find_model(config)
        if not ray.is_initialized():  # in `serve deploy` Serve runs already, and its own configuration names the port
            _join(click.get_current_context().params)
            open_port(config)
        return build(pin_model(config))
    except ProspectError as error:
        raise click.ClickException(str(error)) from error


def _join(options: dict[str, str]) -> None:
    """Connect to Ray as `serve run` would do next: what the engines ask for depends on the cluster."""
    environment = parse_runtime_env_args(options["runtime_env"], options["runtime_env_json"], options["working_dir"])
    ray.init(address=options["address"], namespace="serve", runtime_env=environment)
