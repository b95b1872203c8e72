"""The serving benchmark's parts, and a quick run; a run with Ray and deaths in make test-all."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
import psutil
import pytest
import uvicorn

from prospect.benchmarks.config import BenchmarkConfig
from prospect.benchmarks.engine.load import paced
from prospect.benchmarks.serve import client, neighbour, report, returning, soak, taken
from prospect.benchmarks.serve.bare import BareEngine
from prospect.benchmarks.serve.bench import Bench
from prospect.benchmarks.serve.footage import Footage
from prospect.benchmarks.serve.measure import due_times, heard_row
from prospect.benchmarks.serve.model import FOOTAGE
from prospect.benchmarks.serve.processes import CpuMeter, pinned, ray_processes, two_cores
from prospect.benchmarks.serve.record import paced_row, to_record
from prospect.benchmarks.serve.servers import free_port, wait_until_ready
from prospect.benchmarks.serve.sessions import opening, session_spec
from prospect.benchmarks.serve.settings import ServeSuite, Stage, StageLimits
from prospect.benchmarks.suites import run_suite
from prospect.config.load import load
from prospect.dialogue.prompt import ContextSettings
from prospect.errors import ProspectError
from prospect.model.checkpoint import load_model
from prospect.serving.api import build_api
from prospect.serving.live_encoder import LiveEncoder, encoder_of
from prospect.serving.local import local_host
from prospect.serving.settings import ServingSettings
from prospect.streaming.engine import StreamingEngine

QUICK = ["suite=serve", "suite.quick=true"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """With its model written, and no process started."""
    root = tmp_path_factory.mktemp("serve")
    config = load("benchmark", [*QUICK, f"storage.root={root}"], BenchmarkConfig)
    bench = Bench(config, config.suite, root)
    _ = bench.footage
    yield bench
    bench.close()


@pytest.fixture(scope="module")
def engine(bench: Bench) -> StreamingEngine:
    loaded = load_model(bench.model)
    return StreamingEngine(loaded, ContextSettings.of_model(loaded.manifest["context"]), bench.streaming)


class Running:
    """A server in this process, in a thread."""

    def __init__(self, url: str) -> None:
        self.url = url

    def roles(self) -> dict:
        return {"host": [psutil.Process()]}


@pytest.fixture(scope="module")
def server(bench: Bench, engine: StreamingEngine) -> Iterator[Running]:
    encoder = encoder_of(engine.loaded)
    assert encoder is not None
    serving = ServingSettings(port=free_port(), durability="none")
    app = build_api(local_host(engine, LiveEncoder(encoder), serving))
    uvicorn_server = uvicorn.Server(uvicorn.Config(app, port=serving.port, log_level="error"))
    thread = threading.Thread(target=uvicorn_server.run)
    thread.start()
    url = f"http://127.0.0.1:{serving.port}"
    wait_until_ready(url, thread.is_alive)
    yield Running(url)
    uvicorn_server.should_exit = True
    thread.join(10)


@contextmanager
def opened(bench: Bench, server: Running, kind: str, frames: int) -> Iterator:
    workload = bench.workload(2, frames)
    client.open_sessions([bench.group(server, kind, workload)], True)
    try:
        yield workload
    finally:
        client.close_sessions()


def test_the_saved_model_speaks_at_the_spoken_pictures(bench: Bench, engine: StreamingEngine):
    suite, footage = bench.suite, Footage.load(bench.model / FOOTAGE)
    assert footage.pictures == bench.footage.pictures
    assert 0.1 <= footage.num_spoken / len(footage.pictures) <= 0.3
    system = BareEngine(engine, session_spec(suite), footage)
    workload = bench.workload(3, 8)
    system.fill(workload.starts)
    record = paced(system, workload, range(8), 10.0)  # checks that it spoke as scheduled
    assert record.spoke.any()
    assert not record.spoke.all()
    system.close()
    assert not engine.session_ids


@pytest.mark.parametrize("kind", ["pictures", "embeddings"])
def test_clients_hear_of_every_frame_what_the_schedule_says(bench: Bench, server: Running, kind: str):
    with opened(bench, server, kind, 8) as workload:
        due = due_times(workload) / 4
        [heard] = client.pace([due], 10.0)
    row = heard_row(heard, due, workload)
    assert row["undecided"] == row["dropped"] == 0
    assert row["first_words"]["number"] == workload.speaks.sum() > 0
    assert (heard["sent"] >= due).all()
    spoken = heard["first"][workload.speaks] < heard["done"][workload.speaks]
    assert spoken.all(), "the first words come before the decision, which is behind the utterance"


def test_saturation_keeps_frames_under_way_until_its_end(bench: Bench, server: Running):
    with opened(bench, server, "embeddings", 400):
        meter = CpuMeter(server.roles())
        [heard] = client.saturate(4, 0.5, 10.0)
    sent = ~np.isnan(heard["sent"])
    assert np.array_equal(sent, ~np.isnan(heard["done"]))
    assert 8 < sent.sum() < 800
    assert np.nanmax(heard["sent"]) < 0.5 + 1.0
    assert meter.read()["host"] > 0


@pytest.mark.parametrize("noise", ["text", "recipe", "picture"])
def test_a_neighbour_s_messages_are_taken_or_refused(bench: Bench, server: Running, noise: neighbour.Noise):
    frame = bench.messages["embeddings"][0]
    url = server.url.replace("http", "ws") + "/v1/stream"
    sent = neighbour.disturb(noise, url, opening(bench.suite), frame, 0.3)
    assert sent["sent"] > 0
    assert sent["bytes"] > {"text": 4_000, "recipe": 40_000, "picture": 4_000_000}[noise]
    assert set(sent["refused"]) == ({"invalid_data"} if noise == "recipe" else set())


def test_sessions_that_nothing_kills_are_back_at_once(bench: Bench, server: Running):
    stays = returning.die(server.url, opening(bench.suite), bench.footage.embeddings, 2, [], 10.0)
    assert all(stay["back_s"] < 2 for stay in stays)
    assert not any(stay["affected"] for stay in stays)


def test_a_refused_session_is_an_error(bench: Bench, server: Running):
    group = bench.group(server, "embeddings", bench.workload(1, 4))
    with pytest.raises(ProspectError, match="was not opened"):
        client.open_sessions([group | {"opening": {"type": "session.update", "gaol": ""}}], False)


def test_a_latency_counts_from_when_its_frame_was_sent():
    """Frame 0 is silent, frame 1 speaks from 0.52 to 0.9 s, frame 2 is silent, frame 3 is never decided."""
    speaks = np.array([[False, True, False, False]])
    heard = {
        "sent": np.array([[0.01, 0.5, 1.0, 1.5]]),
        "first": np.array([[0.02, 0.52, 1.005, np.nan]]),
        "done": np.array([[0.02, 0.9, 1.005, np.nan]]),
        "seconds": 11.5,
    }
    row = paced_row(to_record(heard, speaks), speaks)
    assert row["decision"]["p50"] == pytest.approx(10)
    assert row["decision"]["number"] == 3
    assert row["decision"]["p99"] > 9000, "a frame without a decision counts with its age"
    assert row["first_words"]["p50"] == pytest.approx(20)
    assert row["utterance"]["p50"] == pytest.approx(400)
    assert (row["asked_per_s"], row["done_per_s"], row["undecided"]) == (2.0, 1.5, 1)


@pytest.mark.skipif(two_cores() is None, reason="one core")
def test_processes_are_kept_on_a_core_for_a_while():
    before, (one, _) = os.sched_getaffinity(0), two_cores()
    with pinned([psutil.Process()], one):
        assert os.sched_getaffinity(0) == one
    assert os.sched_getaffinity(0) == before


def test_without_ray_there_are_no_processes_of_it():
    children = psutil.Process().children()
    assert children or not any(ray_processes().values())


def percentiles(number: int, p50: float = 1.0) -> dict:
    return {"p50": p50, "p95": 2 * p50, "p99": 3 * p50, "number": number, "mean": p50}


def paced_result(system: str, cpu: dict, p50: float) -> dict:
    row = {"system": system, "kind": "embeddings", "sessions": 16, "cpu_ms": cpu, "load": 0.5}
    latencies = {"decision": percentiles(1000, p50), "first_words": percentiles(30), "utterance": percentiles(30)}
    return row | latencies | {"asked_per_s": 32, "done_per_s": 31.5, "dropped": 1, "client_late": percentiles(9, 2.0)}


@pytest.mark.parametrize(
    ("number", "shown"),
    [(19, ["-"] * 3), (199, ["1.0", "-", "-"]), (999, ["1.0", "2.0", "-"]), (1000, ["1.0", "2.0", "3.0"])],
)
def test_a_percentile_is_printed_where_there_are_decisions_enough(number: int, shown: list[str]):
    assert [report.percentile(percentiles(number), name) for name in report.LEAST] == shown


def test_the_table_sets_every_system_against_the_bare_engine(tmp_path: Path):
    engine = paced_result("engine", {"engine": 5.0}, 5.0)
    served = paced_result("serve", {"proxy": 3.0, "gateway": 4.0, "encoder": 1.0, "engine": 6.0, "ray": 1.0}, 14.0)
    del engine["client_late"]
    content = {
        "quick": False,
        "suite": ServeSuite().model_dump(mode="json"),
        "stages": {"paced": {"status": "done", "seconds": 60.0, "error": None, "rows": [engine, served]}},
    }
    table = report.stage_table(content, "paced")
    assert "| Ray Serve | embeddings | 16 | 14.0 | 28.0 | 42.0 | 1000 | 9.0 | 27.0 | 31.5 of 32 | 1 |" in table
    assert "| 6.0 LATE |" in table
    assert "| 9.0 | 8.0 |" in table, "CPU outside the engine's work: 3 + 4 + 1 + (6 - 5)"
    report.plot(content, tmp_path / "latency.png")
    assert (tmp_path / "latency.png").stat().st_size > 10_000


def test_every_stage_has_a_limit():
    assert set(StageLimits.model_fields) == set(get_args(Stage)) == {*ServeSuite().stages, "soak"}


@pytest.mark.parametrize(("sessions", "decisions"), [(4, 60), (16, 1100), (64, 1100)])
def test_a_paced_measurement_has_decisions_for_p99_where_they_come_in_time(bench: Bench, sessions: int, decisions: int):
    card = Bench(bench.config, ServeSuite(), bench.folder)
    assert decisions <= card.frames(sessions) * sessions < decisions + sessions


def test_a_crowd_comes_and_goes_and_what_the_server_takes_is_seen(
    bench: Bench, server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(soak, "AWAY_S", 0.1)
    before = taken.sample(server, bench.folder / "sessions.db", time.monotonic())
    counts = soak.crowd(server.url, opening(bench.suite), bench.footage.embeddings, 10.0, (0.2, 0.6), 4, 3.0, 0)
    assert counts["opened"] >= counts["closed"] > 0
    assert counts["came back"] > 0
    assert 0 < counts["decided"] + counts.get("dropped", 0) <= counts["frames"]
    assert not [name for name in counts if name.startswith("error")]
    after = taken.sample(server, bench.folder / "sessions.db", before["at_s"])
    assert before["parts"]["host"]["memory_mib"] > 0
    assert (before["health"], after["health"]) == (200, 200)
    rows = [before, {"at_s": 1.0, "killed": "engine"}, after, {"counts": counts}]
    taken.plot(rows, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 10_000


def test_the_table_of_a_soak_sets_its_beginning_beside_its_end():
    def sampled(memory: float) -> dict:
        part = {"memory_mib": memory, "files": 40, "threads": 9}
        return {"parts": dict.fromkeys(("gateway", "engine", "proxy"), part), "store_mib": 1.5, "health_ms": 2.0}

    rows = [*map(sampled, (100, 100, 150, 300)), {"at_s": 1.0, "killed": "engine"}, {"counts": {"opened": 3}}]
    stage = {"status": "done", "seconds": 4, "rows": rows, "error": None}
    table = report.stage_table({"quick": False, "suite": ServeSuite().model_dump(), "stages": {"soak": stage}}, "soak")
    assert "| gateway: memory, MiB | 100 | 300 |" in table
    assert "1 processes killed; 3 opened." in table


def test_a_quick_run_writes_its_numbers_as_it_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    smaller = ["suite.stages=[paced]", "suite.systems=[engine]", f"storage.root={tmp_path}"]
    run_suite(load("benchmark", [*QUICK, *smaller], BenchmarkConfig))
    [file] = (tmp_path / "benchmarks").glob("serve-quick-*.json")
    [row] = json.loads(file.read_text())["stages"]["paced"]["rows"]
    assert (row["system"], row["undecided"]) == ("engine", 0)
    assert "QUICK run" in capsys.readouterr().out


@pytest.mark.e2e
@pytest.mark.long
def test_every_stage_with_ray_and_deaths(tmp_path: Path):
    stages = "suite.stages=[ready,paced,unloaded,saturation,neighbour,durability,recovery,soak]"
    crowd = ["suite.soak_s=20", "suite.soak_kill_every_s=8", "suite.soak_sample_every_s=2", "suite.soak_people=3"]
    systems = "suite.systems=[engine,host,serve,direct]"
    run_suite(load("benchmark", [*QUICK, stages, *crowd, systems, f"storage.root={tmp_path}"], BenchmarkConfig))
    [file] = (tmp_path / "benchmarks").glob("serve-quick-*.json")
    assert "NaN" not in file.read_text()
    stages = json.loads(file.read_text())["stages"]
    assert all(stage["status"] == "done" for stage in stages.values())
    assert [row["death"] for row in stages["recovery"]["rows"]] == list(ServeSuite().deaths)
    assert all(row["first_s"] for row in stages["recovery"]["rows"])
    assert stages["ready"]["rows"][0]["ready_s"] > 0
    *_, last = stages["soak"]["rows"]
    assert [row["killed"] for row in stages["soak"]["rows"] if "killed" in row][:2] == ["engine", "gateway"]
    assert last["counts"]["decided"] > 0
    assert not [name for name in last["counts"] if name.startswith("error")]
