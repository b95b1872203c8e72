"""What Serve listens on: its proxies, and the port that it opens in every replica."""

from ray.serve.context import _get_global_client

from prospect.serving.config import ServeConfig


def bound_address(config: ServeConfig) -> str | None:
    """The address that Serve's HTTP proxies listen on: where Serve runs, that of its own options, which stay."""
    client = _get_global_client(raise_if_no_controller_running=False)
    return config.serving.host if client is None else client.http_config.host


def keep_replica_port_to_loopback() -> None:
    """Have the gRPC server of this process's replica listen on loopback alone.

    Serve starts it on all addresses once the deployment is made, without a login. Calls go there with
    RAY_SERVE_USE_GRPC_BY_DEFAULT=1 alone; then it stays as Serve has it.
    """
    from ray.serve._private import replica
    from ray.serve._private.constants import RAY_SERVE_USE_GRPC_BY_DEFAULT

    if RAY_SERVE_USE_GRPC_BY_DEFAULT:
        return
    listen = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: listen(server, address.replace("[::]", "127.0.0.1"))
