"""The proxies that docs/operations.md shows, run before a gateway: TLS, streams, server-sent events, large pictures."""

import io
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from prospect.client import ProspectClient, ServerError
from prospect.model.checkpoint import LoadedModel
from prospect.serving.access.access import Access
from prospect.serving.access.keyring import Keyring
from prospect.serving.access.keys import new_key
from prospect.serving.live_encoder import LiveEncoder
from prospect.serving.local import local_host
from prospect.serving.settings import ServingSettings
from prospect.serving.store import KeyTable
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from scripts.cluster import free_port, listens
from tests.conftest import REPOSITORY
from tests.needs import skip_without
from tests.serving.clients import Server, until
from tests.serving.models import CONTEXT, NEVER, STEPS, picture

NAME = "camera.example.com"
HERE = {NAME: "127.0.0.1"}
UPSTREAM = "127.0.0.1:8000"


@dataclass
class Site:
    """A gateway that knows a key, and the port of the proxy before it."""

    port: int
    key: str
    written: Callable[[], str]
    """What the proxy has written: logs."""

    @property
    def url(self) -> str:
        return f"https://{NAME}:{self.port}"

    @property
    def stream(self) -> str:
        return f"wss://{NAME}:{self.port}/v1/stream"

    @property
    def protocols(self) -> list[Subprotocol]:
        """With which a browser opens a stream."""
        return [Subprotocol("prospect"), Subprotocol(f"prospect.key.{self.key}")]

    @property
    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}


def example(language: str) -> str:
    """The proxy's configuration as the page has it."""
    page = (REPOSITORY / "docs" / "operations.md").read_text()
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return found


def replaced(text: str, values: dict[str, str]) -> str:
    for each, value in values.items():
        assert text.count(each) == 1, each
        text = text.replace(each, value)
    return text


def certify(folder: Path) -> tuple[Path, Path]:
    """A certificate of the name that signs itself, and its key."""
    certificate, key = folder / "camera.pem", folder / "camera.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-subj", f"/CN={NAME}"]
    subprocess.run([*command, "-addext", f"subjectAltName=DNS:{NAME}"], check=True, capture_output=True)
    return certificate, key


def nginx(folder: Path, port: int, upstream: str) -> tuple[list[str], Path]:
    """The command, and the authority of its certificate."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    skip_without("nginx", program)
    certificate, key = certify(folder)
    values = {
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl", UPSTREAM: upstream,
        "/etc/ssl/camera.pem": str(certificate), "/etc/ssl/camera.key": str(key),
    }  # fmt: skip
    places = "".join(f"{each}_temp_path {folder}/{each};\n" for each in ("proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;\n" if os.getuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user}daemon off;\npid {folder}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n"
        f"access_log {folder}/log;\nclient_body_temp_path {folder}/body;\n{places}"
        f"{replaced(example('nginx'), values)}}}\n"
    )
    return [program or "", "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")], certificate


def caddy(folder: Path, port: int, upstream: str) -> tuple[list[str], Path]:
    """The command, and the authority of its certificate: its own, for want of a public name."""
    program = shutil.which("caddy")
    skip_without("caddy", program)
    here = f"admin off\nlocal_certs\nskip_install_trust\nauto_https disable_redirects\nhttps_port {port}\n"
    site = replaced(example("caddy"), {UPSTREAM: upstream})
    (folder / "Caddyfile").write_text(f"{{\n{here}default_bind 127.0.0.1\nstorage file_system {folder}\n}}\n{site}")
    command = [program or "", "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]
    return command, folder / "pki/authorities/local/root.crt"


@contextmanager
def running(command: list[str], folder: Path, port: int) -> Iterator[Callable[[], str]]:
    """A proxy until the end of the block; gives what it has written."""
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, "HOME": str(folder)})
        try:
            until(lambda: listens(port) or process.poll() is not None)
            assert process.poll() is None, (folder / "said").read_text()
            yield lambda: "".join(each.read_text() for each in (folder / "said", folder / "log") if each.exists())
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="module")
def gateway(loaded: LoadedModel, live_encoder: LiveEncoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A gateway as operations.md wants it behind a proxy, and a key."""
    table = KeyTable(f"sqlite:///{tmp_path_factory.mktemp('keys')}/keys.db")
    key, row = new_key("test")
    table.add(row)
    engine = StreamingEngine(loaded, CONTEXT, StreamingSettings(max_sessions=8))
    access = Access(ServingSettings(allowed_hosts=(NAME,)), Keyring(table), "127.0.0.1")
    server = Server(local_host(engine, live_encoder), access)
    yield server, key
    server.stop()


@pytest.fixture(scope="module", params=[nginx, caddy])
def site(request: pytest.FixtureRequest, gateway: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    server, key = gateway
    folder, port = tmp_path_factory.mktemp(request.param.__name__), free_port()
    command, authority = request.param(folder, port, f"127.0.0.1:{server.port}")
    find = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch, running(command, folder, port) as written:
        until(authority.exists)
        patch.setenv("SSL_CERT_FILE", str(authority))
        patch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: find(HERE.get(host, host), *rest, **more))
        yield Site(port, key, written)


@pytest.fixture
def http(site: Site) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=site.url, trust_env=False, verify=ssl.create_default_context(), timeout=30) as http:
        yield http


def large_picture() -> bytes:
    """Some 7 MB."""
    file = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (1500, 1560, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def test_a_client_streams_and_large_pictures_pass(site: Site) -> None:
    large = large_picture()
    assert len(large) > 7_000_000
    with ProspectClient(site.url, key=site.key, timeout=30) as client:
        session_id = client.create("Make tea", STEPS, thresholds=NEVER).session_id
        assert client.push(session_id, large)[0].frame == 0
        client.close(session_id)
        with client.live("Make tea", STEPS, thresholds=NEVER) as live:
            for each in (large, picture(1), large):
                live.push(each)
            live.close()
            assert [message.type for message in live] == ["decision"] * 3 + ["session.closed"]


def test_events_are_not_held_back(site: Site, http: httpx.Client) -> None:
    with ProspectClient(site.url, key=site.key) as client:
        session_id = client.create("Make tea", STEPS, thresholds=NEVER).session_id
        with http.stream("GET", f"/v1/sessions/{session_id}/events", headers=site.bearer) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("retry:")
            for seq in range(3):
                client.push(session_id, picture(seq))
                began = time.monotonic()
                assert f'"seq":{seq},' in next(line for line in lines if line.startswith("data:"))
                assert time.monotonic() - began < 1, "it came before the stream ended"
        client.close(session_id)


def test_nobody_gets_in_by_coming_from_the_proxy(site: Site, http: httpx.Client) -> None:
    """For the server each of them comes from loopback."""
    for forged in ({}, {"x-forwarded-for": "127.0.0.1"}, {"forwarded": "for=127.0.0.1"}, {"x-real-ip": "127.0.0.1"}):
        assert http.get("/v1/model", headers=forged).status_code == 401
    assert http.get("/v1/model", headers=site.bearer).status_code == 200
    assert "script-src 'self'" in http.get("/").headers["content-security-policy"]
    with ProspectClient(site.url, key="wrong") as client, pytest.raises(ServerError) as refusal:
        client.live(reconnect=False)
    assert refusal.value.code == "unauthorized"


def test_pages_are_told_apart_by_their_origin_and_the_server_by_its_name(site: Site, http: httpx.Client) -> None:
    own = Origin(site.url)
    connect(site.stream, origin=own, subprotocols=site.protocols, proxy=None).close()
    for other in ("https://evil.example.com", f"https://{NAME}:1"):
        with pytest.raises(InvalidStatus) as refused:
            connect(site.stream, origin=Origin(other), subprotocols=site.protocols, proxy=None)
        assert refused.value.response.status_code == 403
    answer = http.get("/v1/model", headers={**site.bearer, "host": "evil.example.com"})
    assert "fingerprint" not in answer.text, "the server refuses the name, or the proxy has none of it"


def test_the_proxys_logs_have_no_key(site: Site, http: httpx.Client) -> None:
    http.get("/v1/model", headers=site.bearer)
    connect(site.stream, subprotocols=site.protocols, proxy=None).close()
    until(lambda: all(path in site.written() for path in ("/v1/model", "/v1/stream")))
    assert site.key.rpartition("_")[2] not in site.written()
