"""`prospect status` and `prospect test` on a real server in this process, and on what is none."""

import re
import socket
import subprocess
import sys
import time

import pytest

from prospect import cli
from prospect.model.checkpoint import LoadedModel
from prospect.probe.command import status_lines
from prospect.protocol.messages import LastMove, ServerStatus, SessionUpdate, StepTimes
from prospect.serving.api import build_api
from prospect.serving.journal import Journal
from prospect.serving.local import local_host
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from tests.bare import LIGHT, MISSING
from tests.serving.models import CONTEXT
from tests.serving.uvicorn_server import listening


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `prospect ARGUMENTS`."""
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert isinstance(left.value.code, int)
    return left.value.code, *capsys.readouterr()


@pytest.fixture
def nobody() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    return f"http://127.0.0.1:{port}"


def test_a_deployment_in_ten_lines(url: str, capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, "status", url)
    lines = [re.split(r"\s+", line, maxsplit=1) for line in out.splitlines()]
    assert (code, err, len(lines)) == (0, "", 10)
    told = dict(lines)
    assert told["health"] == "ok"
    assert told["model"] == "models:/tests/1"
    assert told["processes"] == "1 engines, 1 gateways, 1 encoders"


def test_all_that_a_status_can_say():
    found = ServerStatus(
        health="degraded", ready=False, reason="the session store is away; try again",
        gateways=2, engines=3, encoders=1, sessions=14, capacity=64,
        decisions_per_second=27.94, step_seconds=StepTimes(p50=0.0112, p95=0.024),
        dropped_frames=3, moves=2, last_move=LastMove(seconds_ago=812.4, seconds=0.31, lost_frames=7),
        store="away", store_lag_seconds=12.3,
    )  # fmt: skip
    told = dict(status_lines(found))
    assert len(told) == 10
    assert told["ready"] == "no: the session store is away; try again"
    assert told["steps"] == "p50 11.2 ms, p95 24.0 ms"
    assert told["store"] == "away, 12.3 s behind"
    assert told["moves"] == "2, the last 812 s ago took 0.31 s, 7 frames lost"


def test_a_clip_is_streamed_and_everything_holds(url: str, capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, "test", url, "speed=20")
    assert (code, err) == (0, ""), out
    first, *checks, latency = out.splitlines()
    assert first.startswith(f"{url}: models:/tests/1; ")
    assert first.endswith(" pictures, 40 a second")
    assert [line.split()[0] for line in checks] == ["ok"] * 7, out
    assert re.fullmatch(r"latency .*: p50 \d+ ms, p95 \d+ ms", latency)


def test_a_server_without_an_encoder_gets_embeddings(loaded: LoadedModel, capsys: pytest.CaptureFixture[str]):
    engine = StreamingEngine(loaded, CONTEXT, StreamingSettings())
    with listening(build_api(local_host(engine))) as url:
        code, out, _ = run(capsys, "test", url, "speed=20")
    assert code == 0, out
    assert " embeddings, " in out


def test_a_server_that_answers_otherwise_fails(loaded: LoadedModel, capsys: pytest.CaptureFixture[str], monkeypatch):
    """It sends nothing again to a connection that asks for all."""
    host = local_host(StreamingEngine(loaded, CONTEXT, StreamingSettings(cooldown_frames=2, speak_hysteresis=None)))
    read = Journal.read
    monkeypatch.setattr(Journal, "read", lambda journal, resumed=None: read(journal, resumed and SessionUpdate()))
    with listening(build_api(host)) as url:
        code, out, _ = run(capsys, "test", url, "speed=20")
    assert code == 1
    failed = [line for line in out.splitlines() if line.startswith("FAILED")]
    assert any("a new connection hears the same" in line for line in failed), out


@pytest.mark.parametrize("command", ["status", "test"])
def test_where_nothing_answers_one_sentence_says_so(command: str, nobody: str, capsys: pytest.CaptureFixture[str]):
    code, out, err = run(capsys, command, nobody)
    assert (code, out) == (1, "")
    assert re.fullmatch(rf"error: nothing answers at {nobody}: .+\n", err)


@pytest.mark.parametrize("command", ["status", "test"])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["localhost:8000"],
            "URL (localhost:8000) must begin with http:// or https://, for example http://127.0.0.1:8000",
        ),
        (["http://a", "http://b"], "expected one URL, not 2: http://a, http://b"),
        (["pace=2"], "`pace` is not an option here"),
    ],
)
def test_a_mistake_is_one_sentence(command: str, arguments: list[str], sentence: str, capsys):
    code, out, err = run(capsys, command, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {sentence}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("speed", ["0", "-1", "fast", "inf", "nan"])
def test_a_speed_must_be_a_number_above_0(speed: str, capsys: pytest.CaptureFixture[str]):
    code, _, err = run(capsys, "test", f"speed={speed}")
    assert (code, err) == (2, f"error: `speed` ({speed}) must be a number above 0\n")


def test_both_need_the_client_alone_and_begin_soon(nobody: str):
    script = LIGHT.format(missing=MISSING) + "from prospect.cli import main; import sys; main(sys.argv[1:])"
    for command in ("status", "test"):
        began = time.monotonic()
        ran = subprocess.run([sys.executable, "-c", script, command, nobody], capture_output=True, text=True)
        assert ran.returncode == 1, ran.stderr
        assert "nothing answers" in ran.stderr
        assert time.monotonic() - began < 10, "2 s on a machine that does nothing else"


def test_help_names_both(capsys: pytest.CaptureFixture[str]):
    cli.main(["--help"])
    listed = capsys.readouterr().out
    assert "  status " in listed
    assert "  test " in listed
    for command in ("status", "test"):
        code, out, _ = run(capsys, command, "--help")
        assert code == 0
        assert out.startswith(f"usage: prospect {command} [URL]")
