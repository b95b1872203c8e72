"""Gateways that listen themselves, on a port that they share."""

import asyncio
import socket
import time
from pathlib import Path

import httpx
import pytest

from prospect.client import AsyncProspectClient
from prospect.config.load import load
from prospect.errors import ConfigError
from prospect.model.checkpoint import LoadedModel
from prospect.serving.access.access import Access
from prospect.serving.access.keyring import Keyring
from prospect.serving.access.keys import new_key
from prospect.serving.api import build_api
from prospect.serving.config import ServeConfig
from prospect.serving.host import SessionHost
from prospect.serving.live_encoder import LiveEncoder
from prospect.serving.local import LocalEngines
from prospect.serving.own_port import OwnPort
from prospect.serving.settings import ServingSettings
from prospect.serving.store import KeyTable, Store
from prospect.serving.worker import EngineWorker
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from scripts.cluster import free_port
from tests.serving.models import CONTEXT, NEVER, STEPS, picture


class Gateway:
    """A host on its own port, in the running event loop."""

    def __init__(self, engines: LocalEngines, encoder: LiveEncoder, url: str, port: int, keyed: bool = False) -> None:
        settings = ServingSettings()
        self.host = SessionHost(engines, "secret", encoder, settings, Store(url))
        self._port = OwnPort("127.0.0.1", port)
        self._port.open(build_api(self.host, Access(settings, Keyring(KeyTable(url)) if keyed else None, "127.0.0.1")))
        self.check_health = self._port.check_health

    async def listens(self) -> None:
        while not self._port._server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        await self._port.end(self.host.stop)


@pytest.fixture
def engines(loaded: LoadedModel) -> LocalEngines:
    return LocalEngines(
        [EngineWorker(StreamingEngine(loaded, CONTEXT, StreamingSettings(max_sessions=3)), accepts_images=True)],
        "secret",
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/sessions.db"


def test_a_gateway_that_stops_says_so_and_its_client_goes_on_at_the_other(
    engines: LocalEngines, live_encoder: LiveEncoder, url: str
):
    async def story() -> list[str]:
        port, heard = free_port(), []
        gateways = [Gateway(engines, live_encoder, url, port) for _ in range(2)]
        for each in gateways:
            await each.listens()
        async with (
            AsyncProspectClient(f"http://127.0.0.1:{port}") as client,
            client.live("Make tea", STEPS, thresholds=NEVER) as live,
        ):
            await live.push(picture(0))
            heard.append((await live.receive()).type)
            [owner] = [each for each in gateways if each.host.open_sessions]
            stopping = asyncio.create_task(owner.stop())
            heard.append((await live.receive()).type)
            await live.push(picture(1))
            heard.append((await live.receive()).type)
            await stopping
            [other] = [each for each in gateways if each is not owner]
            assert other.host.open_sessions
            other.check_health()
            with pytest.raises(RuntimeError, match="direct_port"):
                owner.check_health()
            await live.close()
            heard += [message.type async for message in live]
        await other.stop()
        return heard

    assert asyncio.run(story()) == ["decision", "session.going_away", "decision", "session.closed"]


def test_clients_that_do_not_leave_do_not_keep_a_gateway(
    engines: LocalEngines, live_encoder: LiveEncoder, url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("prospect.serving.own_port.LAST_WORDS_WITHIN_S", 0.2)

    async def story() -> float:
        port = free_port()
        gateway = Gateway(engines, live_encoder, url, port)
        await gateway.listens()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST /v1/sessions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 9\r\n\r\n".encode())
        await asyncio.sleep(0.2)  # a request without an end
        began = time.monotonic()
        await gateway.stop()
        writer.close()
        return time.monotonic() - began

    assert asyncio.run(story()) < 5


def test_keys_and_hosts_are_looked_at_as_behind_the_proxy(engines: LocalEngines, live_encoder: LiveEncoder, url: str):
    async def story() -> list[int]:
        table, port = KeyTable(url), free_port()
        key, row = new_key("tablet")
        table.add(row)
        gateway = Gateway(engines, live_encoder, url, port, keyed=True)
        await gateway.listens()
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as http:
            given = [{}, {"authorization": f"Bearer {key}"}, {"host": "evil.example", "authorization": f"Bearer {key}"}]
            found = [(await http.get("/v1/model", headers=headers)).status_code for headers in given]
        await gateway.stop()
        return found

    assert asyncio.run(story()) == [401, 200, 403]


def test_a_port_that_another_program_has_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"`serving.direct_port` \(127.0.0.1:{port}\) cannot be listened on"):
            OwnPort("127.0.0.1", port)


def test_it_must_not_be_the_proxys_port():
    with pytest.raises(ConfigError, match=r"direct_port \(8000\) must differ from port, where Serve's proxy listens"):
        load("serve", ["storage.root=/data", "serving.direct_port=8000"], ServeConfig)
