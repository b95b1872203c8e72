"""Two keys at two gateways, over HTTP and WebSocket: what each may see, and that no way leads around its key."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from prospect.client import AsyncProspectClient, ProspectClient, ServerError
from prospect.model.checkpoint import LoadedModel
from prospect.serving.access.access import Access
from prospect.serving.access.keyring import Keyring
from prospect.serving.access.keys import new_key, split_key
from prospect.serving.host import SessionHost
from prospect.serving.live_encoder import LiveEncoder
from prospect.serving.local import LocalEngines
from prospect.serving.settings import KeySettings, ServingSettings
from prospect.serving.store import KeyTable, Store
from prospect.serving.worker import EngineWorker
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from tests.serving.clients import Server, until
from tests.serving.http_requests import refused
from tests.serving.models import CONTEXT, NEVER, STEPS, picture

PAGE = "https://app.example.com"
"""A web page of another server that may use this one."""
NOBODY = "no-such-session"
BODIES: dict[str, dict[str, Any]] = {
    "POST /frames": {"content": picture(0), "headers": {"content-type": "image/png"}},
    "POST /text": {"json": {"text": "Hello."}},
    "PATCH /state": {"json": {"state": {"S1": "completed"}}},
    "GET ": {}, "GET /transcript": {}, "GET /record": {}, "DELETE ": {},
}  # fmt: skip
"""Every operation on a session: method and rest of the path, with what it needs."""


@dataclass
class Site:
    """Two gateways with one store and one engine."""

    gateways: list[Server]
    store: Store
    table: KeyTable
    http: httpx.Client
    keys: list[str] = field(default_factory=list)

    def url(self, gateway: int = 0) -> str:
        return f"http://127.0.0.1:{self.gateways[gateway].port}"

    def new_key(self) -> str:
        key, row = new_key("test")
        self.table.add(row)
        until(lambda: self.call("GET", "/v1/model", key).status_code == 200)
        return key

    def call(self, method: str, path: str, key: str | None = None, gateway: int = 0, **options: Any) -> httpx.Response:
        headers = options.pop("headers", {}) | ({} if key is None else {"authorization": f"Bearer {key}"})
        return self.http.request(method, f"{self.url(gateway)}{path}", headers=headers, **options)

    def client(self, key: str, gateway: int = 0) -> ProspectClient:
        return ProspectClient(self.url(gateway), key=key, timeout=10)

    def socket(self, **options: Any) -> ClientConnection:
        return connect(self.url().replace("http", "ws") + "/v1/stream", proxy=None, **options)


LIMITS = KeySettings(max_sessions=3, max_messages_per_s=20.0, max_bytes_per_s=1e6)


@pytest.fixture(scope="module")
def site(loaded: LoadedModel, live_encoder: LiveEncoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    url = f"sqlite:///{tmp_path_factory.mktemp('keys')}/sessions.db"
    settings = ServingSettings(keys=LIMITS, allowed_origins=(PAGE,))
    engine = StreamingEngine(loaded, CONTEXT, StreamingSettings(max_sessions=32))
    engines = LocalEngines([EngineWorker(engine, accepts_images=True)], "secret")
    gateways = [
        Server(
            SessionHost(engines, "secret", live_encoder, settings, Store(url)),
            Access(settings, Keyring(KeyTable(url)), "127.0.0.1"),
        )
        for _ in range(2)
    ]
    with httpx.Client(trust_env=False, timeout=30) as http:
        site = Site(gateways, Store(url), KeyTable(url), http)
        for gateway in range(2):  # the engine begins to listen with the first
            assert site.call("GET", "/readyz", gateway=gateway).status_code == 200
        site.keys += [site.new_key(), site.new_key()]
        yield site
    for server in reversed(gateways):
        server.stop()


@pytest.fixture
def key(site: Site) -> str:
    """One that nobody has used."""
    return site.new_key()


@pytest.mark.parametrize("authorization", [None, "Bearer", "Bearer x", "Basic {key}", "Bearer {key}x", "{key}"])
@pytest.mark.parametrize("path", ["/v1/model", "/v1/sessions/a", "/openapi.json", "/nowhere"])
def test_without_a_good_key_nothing_is_said(site: Site, path: str, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization.format(key=site.keys[0])}
    answer = site.call("GET", path, headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    said = refused(answer)
    assert (said["code"], said["field"]) == ("unauthorized", "authorization")
    assert site.keys[0] not in answer.text


def test_health_needs_no_key(site: Site) -> None:
    assert site.call("GET", "/healthz").json() == {"status": "ok"}
    assert site.call("GET", "/readyz").status_code == 200


def test_a_key_does_what_it_may_and_the_description_says_so(site: Site) -> None:
    described = site.call("GET", "/openapi.json", site.keys[0]).json()
    assert described["security"] == [{"key": []}]
    assert described["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}
    assert described["paths"]["/healthz"]["get"]["security"] == []
    assert "401" in described["paths"]["/v1/sessions"]["post"]["responses"]


@pytest.mark.parametrize("gateway", [0, 1])
@pytest.mark.parametrize("operation", BODIES)
def test_a_session_of_another_key_is_one_that_never_was(site: Site, operation: str, gateway: int) -> None:
    """At the gateway that has it, and at one that would have it answered there."""
    mine, other = site.keys
    with site.client(mine) as client:
        session_id = client.create("Make tea", STEPS, thresholds=NEVER).session_id
        method, _, rest = operation.partition(" ")
        answers = [
            site.call(method, f"/v1/sessions/{name}{rest}", other, gateway, **BODIES[operation])
            for name in (session_id, NOBODY)
        ]
        for answer in answers:
            assert (answer.status_code, refused(answer)["code"]) == (404, "unknown_session")
        assert answers[0].text.replace(session_id, NOBODY) == answers[1].text
        allowed = site.call(method, f"/v1/sessions/{session_id}{rest}", mine, gateway, **BODIES[operation])
        assert allowed.status_code < 300, allowed.text
        assert split_key(mine)[0] not in allowed.text, "clients know the name alone"
        if method != "DELETE":
            client.close(session_id)


def test_the_id_inside_the_server_opens_nothing(site: Site) -> None:
    mine, other = site.keys
    with site.client(mine) as client:
        session_id = client.create().session_id
        inside = f"{split_key(mine)[0]}.{session_id}"
        assert site.gateways[0].host.open_sessions == [inside]
        assert site.store.find(inside).key_id == split_key(mine)[0]
        for key in (mine, other):
            for gateway in range(2):
                assert site.call("GET", f"/v1/sessions/{inside}", key, gateway).status_code == 404
        client.close(session_id)


def test_two_keys_have_sessions_of_one_name(site: Site) -> None:
    with site.client(site.keys[0]) as one, site.client(site.keys[1], 1) as two:
        for client, goal in ((one, "Make tea"), (two, "Make coffee")):
            created = client.create(goal, STEPS, session_id="kitchen-7", thresholds=NEVER)
            assert created.session_id == "kitchen-7"
            assert created.resume.startswith("kitchen-7:")
        with pytest.raises(ServerError, match="'kitchen-7' is open already") as mine:
            one.create(session_id="kitchen-7")
        assert mine.value.code == "session_exists"
        assert (one.view("kitchen-7").goal, two.view("kitchen-7").goal) == ("Make tea", "Make coffee")
        assert one.close("kitchen-7").session_id == "kitchen-7"
        assert two.view("kitchen-7").goal == "Make coffee"
        two.close("kitchen-7")


def test_a_handle_is_good_with_its_key_alone_and_at_every_gateway(site: Site) -> None:
    mine, other = site.keys
    with site.client(mine) as client, site.client(other, 1) as stranger, site.client(mine, 1) as elsewhere:
        handle = client.create("Make tea", STEPS, thresholds=NEVER, keep=True).resume
        said = []
        for tried in (handle, f"{NOBODY}:8d1f0b4e2c6a9375"):
            with pytest.raises(ServerError) as refusal:
                stranger.resume(tried, reconnect=False)
            said.append((refusal.value.code, str(refusal.value), refusal.value.field))
        assert said[0] == said[1]
        assert said[0][0] == "unknown_session"
        with elsewhere.resume(handle) as live:
            live.push(picture(0))
            assert live.receive(10).type == "decision"
            assert live.session_id == handle.partition(":")[0]
            with pytest.raises(ServerError) as refusal:
                stranger.view(live.session_id)
            assert refusal.value.code == "unknown_session"
            live.close()
            assert list(live)[-1].session_id == live.session_id


def test_a_forwarded_request_cannot_be_forged(site: Site) -> None:
    """Who asks stands in the server's own scope, and no header gets there."""
    mine, other = site.keys
    with site.client(mine) as client:
        session_id, key_id = client.create().session_id, split_key(mine)[0]
        for name in ("prospect.caller", "prospect-caller", "x-prospect-caller", "x-forwarded-user", "x-key-id"):
            for key in (None, other):
                for gateway in range(2):
                    answer = site.call("GET", f"/v1/sessions/{session_id}", key, gateway, headers={name: key_id})
                    assert answer.status_code == (401 if key is None else 404)
        client.close(session_id)


# Streams ----------------------------------------------------------------------------------------------------


def left_with(socket: ClientConnection) -> tuple[list[str], int]:
    """Codes of the errors that a stream hears, and its close code."""
    codes: list[str] = []
    with suppress(ConnectionClosedError):  # for what is not 1000 or 1001
        codes.extend(json.loads(text)["code"] for text in socket)
    assert socket.close_code is not None
    return codes, socket.close_code


def test_a_browsers_socket_carries_its_key_as_a_subprotocol(site: Site) -> None:
    with site.socket(subprotocols=["prospect", f"prospect.key.{site.keys[0]}"]) as socket:
        assert socket.subprotocol == "prospect"
        socket.send(json.dumps({"type": "session.update"}))
        assert json.loads(socket.recv(10))["type"] == "session.created"


@pytest.mark.parametrize("protocols", [None, ["prospect"], ["prospect", "prospect.key.x"]])
def test_a_socket_without_a_key_hears_why_and_is_closed(site: Site, protocols: list[str] | None) -> None:
    with site.socket(subprotocols=protocols) as socket:
        assert socket.subprotocol == (protocols and "prospect")
        assert left_with(socket) == (["unauthorized"], 4003)


def test_a_stream_whose_key_is_revoked_is_cut_off(site: Site, key: str) -> None:
    with site.client(key) as client, client.live(thresholds=NEVER) as live:
        live.push(picture(0))
        assert live.receive(10).type == "decision"
        site.table.revoke(split_key(key)[0], time.time())
        with pytest.raises(ServerError, match="unknown or was revoked") as refusal:
            for _ in live:
                pass
        assert refusal.value.code == "unauthorized"
        with pytest.raises(ServerError):
            client.view(live.session_id)


def test_the_client_takes_its_key_from_the_environment(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerError) as refusal:
        ProspectClient(site.url()).model()
    assert refusal.value.code == "unauthorized"
    monkeypatch.setenv("PROSPECT_API_KEY", site.keys[0])
    assert ProspectClient(site.url()).model().accepts_images

    async def story() -> str:
        async with AsyncProspectClient(site.url()) as client, client.live(thresholds=NEVER) as live:
            await live.push(picture(0))
            return (await live.receive()).type

    assert asyncio.run(story()) == "decision"
    with pytest.raises(ServerError, match="characters that no API key has") as wrong:
        ProspectClient(site.url(), key="pk with spaces\n")
    assert "pk with" not in str(wrong.value)


# Web pages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "names"),
    [
        ({"origin": "https://evil.example.com"}, "serving.allowed_origins"),
        ({"origin": "null"}, "serving.allowed_origins"),
        ({"origin": "http://localhost:3000"}, "serving.allowed_origins"),
        ({"host": "evil.example.com"}, "serving.allowed_hosts"),
        ({"host": "evil.example.com", "origin": "http://evil.example.com"}, "serving.allowed_hosts"),
    ],
)
def test_other_pages_and_other_names_are_refused(site: Site, headers: dict[str, str], names: str) -> None:
    for path in ("/v1/model", "/healthz"):
        answer = site.call("GET", path, site.keys[0], headers=headers)
        assert (answer.status_code, refused(answer)["code"]) == (403, "forbidden")
        assert names in refused(answer)["message"]
        assert "access-control-allow-origin" not in answer.headers
    with pytest.raises(InvalidStatus) as handshake:
        site.socket(additional_headers=headers | {"authorization": f"Bearer {site.keys[0]}"})
    assert handshake.value.response.status_code == 403


def test_the_servers_own_page_and_a_listed_one_are_answered(site: Site) -> None:
    own = site.call("GET", "/v1/model", site.keys[0], headers={"origin": site.url()})
    assert (own.status_code, "access-control-allow-origin" in own.headers) == (200, False)
    asked = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    preflight = site.call("OPTIONS", "/v1/sessions", headers=asked)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "POST" in preflight.headers["access-control-allow-methods"]
    listed = site.call("GET", "/v1/model", site.keys[0], headers={"origin": PAGE})
    assert (listed.status_code, listed.headers["access-control-allow-origin"]) == (200, PAGE)
    refused_page = site.call("OPTIONS", "/v1/sessions", headers=asked | {"origin": "https://evil.example.com"})
    assert "access-control-allow-origin" not in refused_page.headers
    with site.socket(origin=PAGE, additional_headers={"authorization": f"Bearer {site.keys[0]}"}):
        pass


# Limits -----------------------------------------------------------------------------------------------------


def test_a_key_has_no_more_sessions_than_it_may_at_both_gateways_together(site: Site, key: str) -> None:
    with site.client(key) as one, site.client(key, 1) as two:
        sessions = [client.create().session_id for client in (one, two, one)]
        for gateway in range(2):
            answer = site.call("POST", "/v1/sessions", key, gateway, json={})
            assert (answer.status_code, refused(answer)["code"]) == (429, "too_many_sessions")
            assert int(answer.headers["retry-after"]) > 0
        with site.socket(additional_headers={"authorization": f"Bearer {key}"}) as socket:
            socket.send(json.dumps({"type": "session.update"}))
            assert left_with(socket) == (["too_many_sessions"], 1013)
        one.close(sessions.pop())
        sessions.append(two.create().session_id)
        for session_id in sessions:
            one.close(session_id)


def test_a_key_that_asks_too_often_is_told_to_wait(site: Site, key: str) -> None:
    statuses = [site.call("GET", "/v1/model", key) for _ in range(300)]
    first = next(answer for answer in statuses if answer.status_code != 200)
    assert (first.status_code, refused(first)["code"], first.headers["retry-after"]) == (429, "rate_limited", "1")
    assert site.call("GET", "/v1/model", site.keys[0]).status_code == 200, "another key is not concerned"
    until(lambda: site.call("GET", "/v1/model", key).status_code == 200)


def test_a_key_that_sends_too_much_is_told_to_wait(site: Site, key: str) -> None:
    body = json.dumps({"knowledge": "x" * 6_000_000}).encode()
    answers = [site.call("POST", "/v1/sessions", key, content=body) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [422, 422, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 3


def test_a_stream_that_sends_too_much_is_told_to_wait(site: Site, key: str) -> None:
    """Bytes count, and not characters: these are 3,000,000 characters, and four times as many bytes."""
    text = json.dumps(
        {"type": "input_text.append", "text": "\N{TEACUP WITHOUT HANDLE}" * 1_000_000}, ensure_ascii=False
    )
    with site.socket(additional_headers={"authorization": f"Bearer {key}"}) as socket:
        socket.send(json.dumps({"type": "session.update"}))
        assert json.loads(socket.recv(10))["type"] == "session.created"
        for _ in range(3):
            socket.send(text)
            refused = json.loads(socket.recv(10))
            assert (refused["type"], refused["field"]) == ("error", "text")
        socket.send(json.dumps({"type": "input_text.append", "text": "Hello."}))
        assert json.loads(socket.recv(10))["code"] == "rate_limited"


def test_every_frame_of_a_request_counts(site: Site, key: str) -> None:
    with site.client(key) as client:
        session_id = client.create().session_id
        with pytest.raises(ServerError, match="image"):
            client.push(session_id, *[b"no picture"] * 256)
        answer = site.call("GET", "/v1/model", key)
        assert (answer.status_code, refused(answer)["code"]) == (429, "rate_limited")


def test_a_stream_over_the_limit_hears_of_each_frame_and_goes_on(site: Site, key: str) -> None:
    num = 260
    with site.client(key) as client, client.live(thresholds=NEVER) as live:
        for index in range(num):
            live.push(picture(index % 4))
        heard: dict[str, set[int]] = {"decision": set(), "frame.dropped": set()}
        while sum(map(len, heard.values())) < num:
            message = live.receive(20)
            if message.type in heard:
                heard[message.type].add(message.seq)
        assert heard["frame.dropped"]
        assert heard["decision"] | heard["frame.dropped"] == set(range(num)), "none is lost without a word"
        time.sleep(1.2)
        assert live.push(picture(0)) == num
        assert live.receive(10).type == "decision"
