"""The served application: `serve run serve.app:app [key=value ...]`, keys as in configs/serve.yaml.

`serve deploy serve/serve.yaml` builds it in a worker of a cluster where Serve runs already.
"""

import json
import logging
import signal
from collections.abc import Mapping
from types import FrameType
from typing import Any

import click
import ray
from ray import serve
from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args
from ray.serve.exceptions import RayServeException

from prospect.cluster.runtime import keep_to_loopback, require_listener
from prospect.config.load import load
from prospect.errors import ConfigError, ProspectError
from prospect.serving.config import ServeConfig
from prospect.serving.deployments import build, end_applications, open_port
from prospect.serving.served_model import find_model, pin_model
from prospect.settings import flatten, is_given

IN_VAIN = "New http_options/controller_options will not be applied"
"""Said where Serve runs already; it runs because `app` has started it, with the options that it is to have."""


def app(arguments: dict[str, Any]) -> serve.Application:
    """Build the application. A mistake becomes one line: of `serve run`, or of `serve status`."""
    is_deployed = ray.is_initialized()
    try:
        config = load("serve", overrides(arguments), ServeConfig)
        find_model(config)
        if is_deployed:
            _check_address(config)
        else:
            _start(config)
        return build(pin_model(config))
    except ProspectError as error:
        raise (RayServeException if is_deployed else click.ClickException)(str(error)) from error


def overrides(arguments: Mapping[str, Any]) -> list[str]:
    """Write arguments as the other jobs have them: `serve run` has texts, a file whatever YAML can say."""
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in flatten(arguments).items()
    ]


def _check_address(config: ServeConfig) -> None:
    for key in ("serving.host", "serving.port"):
        if is_given(config, key):
            raise ConfigError(f"`{key}` does nothing in a deployed application: set it in http_options", field=key)


def _start(config: ServeConfig) -> None:
    """Connect to Ray and start Serve, as `serve run` would do next: what engines ask for depends on the cluster."""
    elsewhere = _join(click.get_current_context().params)
    logging.getLogger("ray.serve").addFilter(lambda record: IN_VAIN not in record.getMessage())
    open_port(config, elsewhere)
    signal.signal(signal.SIGINT, _interrupted)


def _join(options: Mapping[str, Any]) -> bool:
    """Connect to Ray; returns whether its workers get an environment of their own."""
    environment = parse_runtime_env_args(options["runtime_env"], options["runtime_env_json"], options["working_dir"])
    require_listener(options["address"] or "", "--address (RAY_ADDRESS)")
    keep_to_loopback(options["address"])
    ray.init(address=options["address"], namespace="serve", runtime_env=environment)
    return bool(environment)


def _interrupted(number: int, frame: FrameType | None) -> None:
    """End as `serve run` does, after the clients have heard of it; a second Ctrl-C does not wait for them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_applications()
    raise KeyboardInterrupt
