"""A state machine plays clients that push, drop their connections and come back, at two gateways and beside HTTP calls.

Whatever it does, each frame is answered once, durable messages are numbered without gaps over all connections, and no
session is left.
"""

import functools
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, multiple, run_state_machine_as_test

from prospect.model.checkpoint import LoadedModel
from prospect.serving.host import SessionHost
from prospect.serving.live_encoder import LiveEncoder, encoder_of
from prospect.serving.local import LocalEngines
from prospect.serving.settings import ServingSettings, SessionLimits
from prospect.serving.store import Store
from prospect.serving.worker import EngineWorker
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from tests.serving.clients import GATEWAY, KEPT, KINDS, LABELS, MISPLACED, MOST, WITHIN_S, Client, Server, Site, until
from tests.serving.models import ALWAYS, CONTEXT, NEVER, STEPS


def noted(step: Callable[..., Any]) -> Any:
    """Keep a step's failure: where a second run of the same steps succeeds, hypothesis tells of that."""

    @functools.wraps(step)
    def told(self: "Clients", **arguments: Any) -> Any:
        try:
            return step(self, **arguments)
        except Exception:
            self.site.failures.append("\n".join([traceback.format_exc(), *self.site.state(), *self.logs()]))
            raise

    return told


def rule(**drawn: Any) -> Callable[[Callable[..., Any]], Any]:
    """A rule of hypothesis."""
    return lambda step: stateful.rule(**drawn)(noted(step))


class Clients(RuleBasedStateMachine):
    """Up to three clients at once."""

    site: Site
    sessions: Bundle[Client] = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[Client] = []

    def logs(self) -> list[str]:
        """What the open sessions' clients have sent and heard."""
        return [line for client in self.open for line in ("", *client.log)]

    # Streams ------------------------------------------------------------------------------------------------

    @rule(target=sessions, speaks=st.booleans(), gateway=GATEWAY)
    def open_session(self, speaks: bool, gateway: int) -> Any:
        if len(self.open) == MOST:
            return multiple()
        client = Client(self.site)
        client.connect(gateway, goal="Make tea", steps=STEPS, thresholds=ALWAYS if speaks else NEVER, keep=True)
        self.open.append(client)
        return client

    @rule(client=sessions, kinds=KINDS)
    def push(self, client: Client, kinds: list[str]) -> None:
        client.be_connected()
        client.push(kinds)

    @rule(client=sessions, ahead=st.booleans())
    def push_out_of_order(self, client: Client, ahead: bool) -> None:
        client.be_connected()
        client.push(["embedding"])  # behind it, the server knows what comes next
        client.settle()
        client.send_frame("misplaced", self.site.frame("embedding", client.next_seq + (3 if ahead else -1)))
        while getattr(client.hear(), "code", "") not in MISPLACED:
            pass

    @rule(client=sessions, text=st.text(min_size=1, max_size=20))
    def say_text(self, client: Client, text: str) -> None:
        client.be_connected()
        client.say(type="input_text.append", text=text)

    @rule(client=sessions, step=st.sampled_from(["S1", "S3", "S4"]), label=LABELS)
    def patch(self, client: Client, step: str, label: str) -> None:
        client.be_connected()
        client.say(type="state.patch", state={step: label})

    @rule(client=sessions)
    def acknowledge(self, client: Client) -> None:
        client.be_connected()
        client.say(type="event.ack", event=client.last_event)

    @rule(client=sessions, whole=st.booleans())
    def listen(self, client: Client, whole: bool) -> None:
        client.be_connected()
        client.settle() if whole else client.catch_up()

    @rule(client=sessions, abruptly=st.booleans())
    def drop_connection(self, client: Client, abruptly: bool) -> None:
        if client.socket is not None:
            if len(client.unanswered) > KEPT:
                client.settle()
            client.drop(abruptly)

    @rule(client=sessions, gateway=GATEWAY)
    def resume(self, client: Client, gateway: int) -> None:
        client.be_connected(gateway)

    @rule(client=sessions, gateway=GATEWAY)
    def resume_on_a_second_connection(self, client: Client, gateway: int) -> None:
        """The first one may not have noticed that it is dead."""
        if client.socket is not None and len(client.unanswered) <= KEPT:
            first, client.socket = client.socket, None
            client.be_connected(gateway)
            first.close()

    @rule(gateway=GATEWAY, kinds=KINDS, abruptly=st.booleans())
    def come_and_go(self, gateway: int, kinds: list[str], abruptly: bool) -> None:
        """A session that is not to be kept ends with its connection."""
        client = Client(self.site)
        client.connect(gateway, steps=STEPS)
        for kind in kinds:
            client.send_frame(kind, self.site.frame(kind, 0))
        client.drop(abruptly)
        until(lambda: self.site.call("GET", gateway, client.path).status_code == 404)
        assert self.site.call("GET", 1 - gateway, client.path).status_code == 404

    # HTTP ---------------------------------------------------------------------------------------------------

    @rule(client=sessions, gateway=GATEWAY, what=st.sampled_from(["", "/transcript", "/record"]))
    def look(self, client: Client, gateway: int, what: str) -> None:
        answer = self.site.call("GET", gateway, client.path + what)
        assert answer.status_code == 200 or (what == "/record" and answer.status_code == 409), answer.text

    @rule(client=sessions, gateway=GATEWAY, label=LABELS)
    def patch_over_http(self, client: Client, gateway: int, label: str) -> None:
        answer = self.site.call("PATCH", gateway, f"{client.path}/state", json={"state": {"S2": label}})
        assert answer.json()["state"]["S2"] == label

    @rule(client=sessions, gateway=GATEWAY, text=st.text(min_size=1, max_size=20))
    def text_over_http(self, client: Client, gateway: int, text: str) -> None:
        assert self.site.call("POST", gateway, f"{client.path}/text", json={"text": text}).status_code in (202, 422)

    @rule(client=sessions, gateway=GATEWAY)
    def frame_over_http(self, client: Client, gateway: int) -> None:
        """The stream hears its decision too."""
        client.be_connected()
        client.settle()
        seq, client.next_seq = client.next_seq, client.next_seq + 1
        message = self.site.frame("embedding", seq)
        client.unanswered[seq] = "embedding", message
        body = message.model_dump(mode="json", exclude_none=True)
        [outcome] = self.site.call("POST", gateway, f"{client.path}/frames", json=body).json()["frames"]
        assert outcome["seq"] == seq

    # The end ------------------------------------------------------------------------------------------------

    @rule(client=consumes(sessions), over_http=st.booleans(), gateway=GATEWAY)
    def close(self, client: Client, over_http: bool, gateway: int) -> None:
        client.be_connected(gateway)
        if over_http:
            client.catch_up()  # what was sent has been taken
            assert self.site.call("DELETE", gateway, client.path).json()["reason"] == "client"
        else:
            client.say(type="session.close")
        client.finish()
        self.open.remove(client)
        for each in range(2):
            assert self.site.call("GET", each, client.path).status_code == 404

    def teardown(self) -> None:
        try:
            self.end()
        finally:  # the next example begins anew
            for gateway in self.site.gateways:
                for session_id in gateway.host.open_sessions:
                    self.site.call("DELETE", 0, f"/{session_id}")
            until(lambda: not self.site.engine.session_ids)

    @noted
    def end(self) -> None:
        """Close what is open; then nothing is left."""
        for client in self.open:
            client.be_connected()
            client.say(type="session.close")
            client.finish()
        for gateway in self.site.gateways:
            assert not gateway.host.open_sessions
        until(lambda: not self.site.engine.session_ids)


@pytest.fixture(scope="module")
def site(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder: Path = tmp_path_factory.mktemp("machine")
    streaming = StreamingSettings(
        cooldown_frames=0, speak_hysteresis=None, max_sessions=2 * MOST, max_waiting_frames=KEPT
    )
    engine = StreamingEngine(loaded, CONTEXT, streaming)
    engines = LocalEngines([EngineWorker(engine, accepts_images=True)], "secret")
    limits = ServingSettings(limits=SessionLimits(max_waiting_frames=KEPT))
    encoder = encoder_of(loaded)
    assert encoder is not None
    url = f"sqlite:///{folder}/sessions.db"
    hosts = [SessionHost(engines, "secret", LiveEncoder(encoder), limits, Store(url)) for _ in range(2)]
    gateways = [Server(host) for host in hosts]
    with httpx.Client(trust_env=False, timeout=WITHIN_S) as http:
        for gateway in gateways:  # the engine begins to listen with the first
            assert http.get(f"http://127.0.0.1:{gateway.port}/readyz").status_code == 200
        yield Site(loaded, engine, gateways, Store(url), http)
    for gateway in reversed(gateways):
        gateway.stop()


def play(site: Site, examples: int, steps: int) -> None:
    machine = type("Machine", (Clients,), {"site": site})
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    limits = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks)
    try:
        run_state_machine_as_test(machine, settings=limits)
    except Exception:
        pytest.fail("\n\n".join([*site.failures[:1], traceback.format_exc()]))


def test_whatever_clients_do_each_frame_is_answered_once(site: Site) -> None:
    play(site, 25, 25)


@pytest.mark.long
def test_the_same_for_a_long_time(site: Site) -> None:
    play(site, 200, 50)
