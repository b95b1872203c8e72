"""The served application on a real Ray Serve: two engines, HTTP and WebSocket, mistakes, the README's examples."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
from ray import serve

from prospect.client import ProspectClient, ServerError
from prospect.config.load import load
from prospect.errors import FingerprintError
from prospect.model.checkpoint import load_model
from prospect.monitoring import METRICS
from prospect.serving.config import ServeConfig
from prospect.serving.deployments import launch
from prospect.serving.live_encoder import encoder_of
from prospect.serving.served_model import find_model
from scripts.cluster import free_port
from tests.bare import LIGHT, MISSING
from tests.conftest import REPOSITORY
from tests.e2e.scraped import scrape_until
from tests.needs import skip_without
from tests.readme import blocks
from tests.serving.models import ALWAYS, NEVER, STEPS, picture, write_model
from tests.vision.videos import write_video

pytestmark = pytest.mark.e2e

EXAMPLES = REPOSITORY / "examples"
SECTION = "Live sessions"
"""Of the README."""


@pytest.fixture(scope="module")
def address(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of a served model on two engines."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    settings = [
        f"storage.root={folder}",
        f"serving.model={write_model(folder / 'model')}",
        f"serving.port={port}",
        "serving.num_replicas=2",
        "streaming.cooldown_frames=0",
        "streaming.speak_hysteresis=null",
    ]
    try:
        launch(load("serve", settings, ServeConfig))
        yield f"127.0.0.1:{port}"
    finally:
        serve.shutdown()


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[ProspectClient]:
    with ProspectClient(f"http://{address}") as client:
        yield client


def is_open(client: ProspectClient, session_id: str) -> bool:
    return httpx.get(f"{client.url}/v1/sessions/{session_id}").status_code == 200


def test_sessions_stay_where_they_are(client: ProspectClient):
    """Over HTTP no request but the path says whose it is; ten sessions on two engines, none is mixed up."""
    sessions = [client.create("Make tea", STEPS, thresholds=NEVER).session_id for _ in range(10)]
    for seq in range(3):
        for session_id in sessions:
            assert client.push(session_id, picture(seq), seq=seq)[0].frame == seq
    for session_id in sessions:
        assert client.close(session_id).frames == 3


def test_two_live_streams_at_once_and_a_request_beside_them(client: ProspectClient):
    with client.live("Make tea", STEPS, thresholds=ALWAYS) as one, client.live("Make tea", thresholds=NEVER) as two:
        for index in range(4):
            one.push(picture(index))
            two.push(picture(index), pts=index / 2)
        assert client.view(two.session_id).goal == "Make tea"
        one.patch(S1="completed")
        one.close()
        two.close()
        heard, quiet = list(one), list(two)
    assert [m.seq for m in heard if m.type == "decision"] == [0, 1, 2, 3]
    assert [m.seq for m in heard if m.type == "response.done"] == [0, 1, 2, 3]
    assert [m.type for m in quiet] == ["decision"] * 4 + ["session.closed"]
    assert heard[-1].type == "session.closed"


def test_who_watches_hears_what_is_said_when_it_is_said(client: ProspectClient):
    """Server-sent events through Serve's proxy, which must not hold them back until the session ends."""
    with client.live("Make tea", STEPS, thresholds=ALWAYS) as live:
        path = f"{client.url}/v1/sessions/{live.session_id}/events"
        with httpx.stream("GET", path, timeout=30) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            data = (line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: "))
            heard = (json.loads(text) for text in data)
            live.push(picture(0))
            assert next(message["text"] for message in heard if message["type"] == "response.done")
            assert client.view(live.session_id).counters["frames"] == 1, "it is open still"
            live.close()
            assert list(heard)[-1]["type"] == "session.closed"


def test_mistakes_reach_the_client_as_sentences(client: ProspectClient):
    with pytest.raises(ServerError) as unknown:
        client.view("none")
    assert (unknown.value.code, str(unknown.value)) == (
        "unknown_session",
        "session_id: no session 'none' is open here",
    )
    malformed = httpx.post(f"{client.url}/v1/sessions", json={"gaol": "tea"})
    assert malformed.status_code == 422
    assert malformed.json()["error"]["field"] == "gaol"
    with client.live(thresholds=NEVER) as live:
        live._socket.send('{"type": "input_frame.append", "seq": "x"}')
        assert live.receive(30).field == "seq"
        live.push(b"no picture")
        assert live.receive(30).code == "invalid_data"
        live.push(picture(0))
        assert live.receive(30).type == "decision"


def test_a_client_that_vanishes_ends_its_session_and_a_kept_one_goes_on(client: ProspectClient):
    with client.live(thresholds=NEVER) as gone, client.live(keep=True, thresholds=NEVER) as kept:
        pass
    with client.resume(kept.created.resume) as again:
        again.push(picture(0))
        assert again.receive(30).type == "decision"
        again.close()
        list(again)
    while is_open(client, gone.session_id):
        pass


def test_without_a_champion_the_server_says_so_in_one_line(tmp_path: Path):
    """Before Ray starts, so that nothing has to be cleaned up."""
    command = [str(Path(sys.executable).with_name("serve")), "run", "serve.app:app", f"storage.root={tmp_path}"]
    ran = subprocess.run(command, cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert "Error: model 'models:/prospect-dst@champion' is not registered" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_model_of_another_encoder_is_not_served_unless_it_is_declared_as_good(tmp_path: Path):
    loaded = load_model(write_model(tmp_path / "model", fingerprint="0123456789abcdef"))
    with pytest.raises(FingerprintError) as refused:
        encoder_of(loaded)
    here = encoder_of(loaded, ["0123456789abcdef"])
    assert here is not None
    for named in ("0123456789abcdef", here.fingerprint, "prospect-tiny", "vision.equivalent_to=[0123456789abcdef]"):
        assert named in str(refused.value)


def test_an_encoder_that_is_given_is_compared_with_the_models(tmp_path: Path):
    given = [
        f"storage.root={tmp_path}",
        f"serving.model={write_model(tmp_path / 'model', fingerprint='0123456789abcdef')}",
    ]
    assert find_model(load("serve", given, ServeConfig)) == tmp_path / "model"
    with pytest.raises(FingerprintError, match=r"^`vision`.*embeddings of 0123456789abcdef") as refused:
        find_model(load("serve", [*given, "vision=tiny"], ServeConfig))
    assert refused.value.field == "vision"
    declared = "vision.equivalent_to=[0123456789abcdef]"
    for good in ([declared], ["vision=tiny", declared]):
        assert find_model(load("serve", [*given, *good], ServeConfig)) == tmp_path / "model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader would stand: with a picture."""
    (tmp_path / "frame.jpg").write_bytes(picture(0, "JPEG"))
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def documents(text: str) -> list[dict]:
    """JSON documents one after the other."""
    decoder, found = json.JSONDecoder(), []
    while text := text.lstrip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found


def test_the_curl_example(address: str, folder: Path):
    skip_without("curl", shutil.which("curl"))
    [example] = [block for block in blocks("sh", SECTION) if "curl" in block]
    script = example.replace("localhost:8000", address).replace("curl ", "curl -sS --noproxy '*' --fail-with-body ")
    created, pushed, viewed, closed = documents(run(["bash", "-ec", script], folder))
    assert created["session_id"] == viewed["session_id"] == closed["session_id"] == "kitchen-7"
    [frame] = pushed["frames"]
    assert 0 <= frame["p_speak"] <= 1


def test_the_python_example(address: str, folder: Path):
    [example] = blocks("python", SECTION)
    assert "127.0.0.1:8000" in example
    printed = run([sys.executable, "-c", example.replace("127.0.0.1:8000", address)], folder)
    lines = printed.splitlines()
    assert sum("type='decision'" in line for line in lines) == 2
    assert "type='session.closed'" in lines[-1]


def test_the_example_that_streams_a_file(address: str, tmp_path: Path):
    video = write_video(tmp_path / "cup.mp4", [index / 2 for index in range(6)], rate=2)
    options = ["--url", f"http://{address}", "--goal", "Wash the cup", "--step", "wash the cup", "--speed", "8"]
    printed = run([sys.executable, str(EXAMPLES / "stream_file.py"), str(video), *options], tmp_path)
    assert "error:" not in printed
    assert printed.splitlines()[-1] == "the session is closed"


def test_the_example_with_asyncio(address: str, folder: Path):
    options = ["frame.jpg", "--url", f"http://{address}", "--sessions", "2", "--frames", "3"]
    printed = run([sys.executable, str(EXAMPLES / "stream_async.py"), *options], folder)
    assert printed.splitlines() == ["Task 1: 3 frames decided", "Task 2: 3 frames decided"]


def test_prometheus_gets_the_metrics_of_a_session(client: ProspectClient):
    """All of gateways, engines and encoders, that a machine without a GPU has; counters once they are more than 0."""
    with client.live("Make tea", STEPS, thresholds=ALWAYS) as live:
        live.push(picture(0))
        live._socket.send("no message")
        live.close()
        list(live)
    served = {each.name: each for each in METRICS.values() if each.by in ("gateway", "engine", "encoder")}
    counted = [
        "prospect_sessions_opened_total",
        "prospect_sessions_ended_total",
        "prospect_frames_total",
        "prospect_decisions_total",
        "prospect_refused_total",
        "prospect_decision_seconds_count",
        "prospect_engines",
        "prospect_engine_capacity",
        "prospect_engine_frames_total",
        "prospect_engine_tokens_total",
        "prospect_step_seconds_count",
        "prospect_kv_pages",
        "prospect_pictures_encoded_total",
        "prospect_encode_seconds_count",
    ]
    found = scrape_until(dict.fromkeys(counted, 1))
    assert set(found) >= {name for name, metric in served.items() if metric.kind == "gauge"}
    assert {re.sub("_(bucket|count|sum)$", "", name) for name in found} <= set(METRICS)
    scrape_until({"prospect_frames_total": found["prospect_decisions_total"]})  # counters are not exported all at once


def test_a_deployment_is_well_and_does_what_it_should(address: str):
    """`prospect status` and `prospect test`, as an operator runs them."""
    url = f"http://{address}"
    for command in (["status", url], ["test", url, "speed=10"]):
        script = f"from prospect.cli import main; main({command})"
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        if command[0] == "status":
            assert "2 engines, 1 gateways, 1 encoders" in ran.stdout


def test_a_replica_writes_what_happens_as_lines_of_json(client: ProspectClient):
    """Into files beside Serve's own logs."""
    with client.live("Make tea", STEPS, thresholds=ALWAYS) as live:
        live.text("My secret is 4711.")
        live.push(picture(0))
        live.close()
        list(live)
    folder = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
    lines = [json.loads(line) for file in folder.glob("prospect_*.jsonl") for line in file.read_text().splitlines()]
    assert {"gateway", "engine", "encoder"} <= {line["process"] for line in lines if line["event"] == "process.started"}
    told = {line["event"]: line for line in lines if line.get("session") == live.session_id}
    assert {"session.opened", "frame.acted", "session.ended"} <= set(told)
    assert (told["frame.acted"]["frame"], told["frame.acted"]["epoch"]) == (0, 1)
    written = "".join(file.read_text() for file in folder.glob("prospect_*.jsonl"))
    assert "4711" not in written
    assert live.created.resume not in written


def test_the_client_needs_neither_torch_nor_ray(address: str, folder: Path):
    """The example of the README's beginning."""
    [example] = blocks("py")
    script = LIGHT.format(missing=MISSING) + example.replace("127.0.0.1:8000", address)
    assert "S1" in run([sys.executable, "-c", script], folder)
