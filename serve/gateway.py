"""The Serve deployment that clients talk to: it owns the sockets and no session."""

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve.api import build_api
from serve.remote import MANY, QUIET, RemoteCore


class Gateway:
    def __init__(self, engine: DeploymentHandle) -> None:
        self._engine = engine

    def __serve_build_asgi_app__(self) -> FastAPI:  # Serve's hook: called in the replica, after __init__
        return build_api(RemoteCore(self._engine))


GatewayDeployment = serve.deployment(name="Gateway", max_ongoing_requests=MANY, logging_config=QUIET)(
    serve.ingress()(Gateway)
)
