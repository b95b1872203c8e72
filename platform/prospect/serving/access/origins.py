"""Which names and which web pages the server answers.

A page in the user's browser may open a WebSocket to any address, loopback too; that is what `Origin` is checked for. A
page may also have its own name lead to 127.0.0.1 (DNS rebinding), and then counts as the server's own; that is what
`Host` is checked for.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

WILDCARDS = ("0.0.0.0", "::", "")
"""Addresses of a server that listens on all of its machine's."""


def is_loopback(host: str | None) -> bool:
    """Whether an address, or a name, is this machine's own and reached by it alone."""
    if host is None or host.lower() == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


class OriginRules:
    """Decides by the headers `Host` and `Origin`.

    Args:
        bound: address that the server listens on; None: none but loopback.
        hosts: further names that it is called by; `*`: any.
        origins: pages beside its own that may use it, such as https://example.com.
    """

    def __init__(self, bound: str | None = None, hosts: Collection[str] = (), origins: Collection[str] = ()) -> None:
        self._bound = (bound or "").strip("[]").lower()
        self._is_everywhere = bound in WILDCARDS and bound is not None
        self._hosts = {host.lower() for host in hosts}
        self._origins = {origin.lower().rstrip("/") for origin in origins}

    def allows_host(self, header: str) -> bool:
        """Whether the server is called by this name; an address of a server that listens on all is none to rebind."""
        name = _name(header)
        if name is None:
            return False
        if "*" in self._hosts or is_loopback(name) or name in self._hosts:
            return True
        return _address(name) is not None if self._is_everywhere else bool(name) and name == self._bound

    def allows_origin(self, origin: str | None, host: str) -> bool:
        """Whether a request comes from no page, from the server's own, or from one that is listed."""
        if origin is None or origin.lower() in self._origins:
            return True
        scheme, _, authority = origin.lower().partition("://")
        return scheme in ("http", "https") and authority != "" and authority == host.lower()


def _name(header: str) -> str | None:
    """The name in a `Host` header, without its port; None where it is malformed."""
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port  # raises where it is none
    except ValueError:
        return None
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return None
    return parts.hostname


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return None
