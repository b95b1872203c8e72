"""What each stage measures. A stage hands over rows of JSON, each as soon as it is measured."""

import itertools
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, get_args

import httpx
import psutil

from prospect.benchmarks.journal import Add
from prospect.benchmarks.serve import bare, client, neighbour, returning, soak, taken
from prospect.benchmarks.serve.bench import Bench
from prospect.benchmarks.serve.measure import (
    due_times,
    heard_row,
    pace_bare,
    pace_server,
    saturate_bare,
    saturate_server,
)
from prospect.benchmarks.serve.processes import pinned, two_cores
from prospect.benchmarks.serve.record import paced_row
from prospect.benchmarks.serve.servers import (
    Server,
    ServeServer,
    free_port,
    kill,
    serve_run,
    stream_url,
    wait_until_ready,
)
from prospect.benchmarks.serve.sessions import opening
from prospect.benchmarks.serve.settings import Death, Kind, Stage
from prospect.dialogue.timeline import FPS
from prospect.errors import ProspectError

_ENDS_WITHIN_S = 60.0
_BACK_WITHIN_S = 60.0
"""Seconds for which clients wait after a death."""
_OPENING_S = 4.0
"""That opening the sessions beside a neighbour may take."""
_SETTLING_S = 3.0
"""That a replica may take from having its title to taking sessions."""
_LED_IN_S = 2.0
"""Until all processes of stage `unloaded` begin at one moment."""
_KINDS: tuple[Kind, ...] = get_args(Kind)


def _ready(bench: Bench, add: Add) -> None:
    """`serve run` from nothing until a session would be taken, and from Ctrl-C until it has ended."""
    _ = bench.footage
    port = free_port()
    began = time.perf_counter()
    with serve_run([f"storage.root={bench.folder}", f"serving.model={bench.model}"], port) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, lambda: process.poll() is None)
        ready = time.perf_counter() - began
        version = httpx.get(f"{url}/v1/model", trust_env=False).json()
        process.send_signal(signal.SIGINT)
        asked = time.perf_counter()
        try:
            process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            add({"ready_s": ready, "ended_s": None, "model": version["name"]})
            return
        add({"ready_s": ready, "ended_s": time.perf_counter() - asked, "model": version["name"]})


def _paced(bench: Bench, add: Add) -> None:
    """Sessions at 2 frames/s, one number and one kind of frames after the other."""
    suite = bench.suite
    if "engine" in suite.systems:
        for sessions in sorted({*suite.sessions, *suite.embedding_sessions}):
            add({"system": "engine", "kind": "embeddings", "sessions": sessions} | pace_bare(bench, sessions))
    for system, server in _servers(bench):
        numbers: dict[Kind, tuple[int, ...]] = {"pictures": suite.sessions, "embeddings": suite.embedding_sessions}
        for kind in numbers:
            for sessions in numbers[kind]:
                named = {"system": system, "kind": kind, "sessions": sessions}
                add(named | pace_server(bench, server, kind, sessions))


def _servers(bench: Bench) -> Iterator[tuple[str, Server]]:
    """Those that are measured over sockets, each started when it is its turn."""
    if "host" in bench.suite.systems:
        yield "host", bench.host
    if "serve" in bench.suite.systems:
        yield "serve", bench.served()
    if "direct" in bench.suite.systems:
        yield "direct", bench.served().direct


def _unloaded(bench: Bench, add: Add) -> None:
    """One session of each system and kind, all in the same minutes, and no two of them at the same moment."""
    suite = bench.suite
    workload = bench.workload(1, round(suite.unloaded_s * FPS))
    over_sockets = [(system, kind, server) for system, server in _servers(bench) for kind in _KINDS]
    ways = len(over_sockets) + 1
    bench.open(*(bench.group(server, kind, workload) for _, kind, server in over_sockets))
    due = [due_times(workload, number / ways) for number in range(1, ways)]
    start_at = time.time() + _LED_IN_S
    try:
        heard = bench.client.submit(client.pace, due, suite.give_up_s, start_at)
        if "engine" in suite.systems:
            record, _ = bench.bare(bare.pace, suite, 1, workload.frames, start_at)
            add({"system": "engine", "kind": "embeddings", "sessions": 1} | paced_row(record, workload.speaks))
        for (system, kind, _), times, each in zip(over_sockets, due, heard.result(), strict=True):
            add({"system": system, "kind": kind, "sessions": 1} | heard_row(each, times, workload))
    finally:
        bench.client(client.close_sessions)


def _saturation(bench: Bench, add: Add) -> None:
    """As many frames as are taken, with the engine on one core and everything else on another where there are two."""
    suite, cores = bench.suite, two_cores()
    engine, others = cores or (None, None)
    sizes: list[tuple[Kind, int]] = [("embeddings", each) for each in suite.in_flight] + [
        ("pictures", max(suite.in_flight))
    ]
    if "engine" in suite.systems:
        for in_flight in suite.in_flight:
            named = {"system": "engine", "kind": "embeddings", "in_flight": in_flight, "pinned": cores is not None}
            add(named | saturate_bare(bench, in_flight, engine))
    for system in ("host", "serve", "direct"):
        if system not in suite.systems:
            continue
        with ExitStack() as stack:
            server = _on_cores(bench, system, engine, others, stack)
            for kind, in_flight in sizes:
                named = {"system": system, "kind": kind, "in_flight": in_flight, "pinned": cores is not None}
                add(named | saturate_server(bench, server, kind, in_flight))


def _on_cores(bench: Bench, system: str, engine: set[int] | None, others: set[int] | None, stack: ExitStack) -> Server:
    """The system with its engine on one core, and itself and the client on another, until the stack is closed."""
    if system == "host":
        server: Server = stack.enter_context(bench.running_host("events", None if engine is None else min(engine)))
        rest = []
    else:
        served = bench.served()
        server = served.direct if system == "direct" else served
        roles = served.roles()
        rest = [process for part, processes in roles.items() if part != "engine" for process in processes]
        if engine is not None:
            stack.enter_context(pinned(roles["engine"], engine))
    if others is not None:
        stack.enter_context(pinned([*rest, bench.client.process, psutil.Process()], others))
    return server


def _neighbour(bench: Bench, add: Add) -> None:
    """Sessions at 2 frames/s beside a client that sends the largest messages, one kind after the other."""
    suite = bench.suite
    *_, (system, server) = _servers(bench)
    lasts = bench.frames(suite.neighbours) / FPS + _OPENING_S
    for noise in get_args(neighbour.Noise):
        disturbing: Future[dict[str, Any]] | None = None
        if noise != "nobody":
            given = (noise, stream_url(server), opening(suite), bench.messages["embeddings"][0], lasts)
            disturbing = bench.neighbour.submit(neighbour.disturb, *given)
        row = pace_server(bench, server, "pictures", suite.neighbours)
        sent = {"sent": 0, "refused": {}, "bytes": 0} if disturbing is None else disturbing.result()
        add({"system": system, "noise": noise, "sessions": suite.neighbours, "seconds": lasts, **sent} | row)


def _durability(bench: Bench, add: Add) -> None:
    """The host without Ray with each durability, where much is said."""
    suite = bench.suite
    for durability in suite.durabilities:
        with bench.running_host(durability) as host:
            row = pace_server(bench, host, "embeddings", suite.durable_sessions, suite.durable_rate)
        add({"durability": durability, "sessions": suite.durable_sessions} | row)


def _recovery(bench: Bench, add: Add) -> None:
    """Seconds from `kill -9` to the next decision of every session."""
    for death in bench.suite.deaths:
        replicas = 2 if "stands by" in death else 1
        row = _die(bench, bench.served(replicas), death, replicas)
        add({"death": death} | row)
        if row["whole_again_s"] is None:
            bench.stop_serve()


def _die(bench: Bench, server: ServeServer, death: Death, replicas: int) -> dict[str, Any]:
    """One death, and the time until the application is whole again."""
    parts = [part for part in ("engine", "gateway") if part in death.split(",")[0]]
    whole = server.roles()
    victims = [whole[part][0].pid for part in parts]
    given = (server.url, opening(bench.suite), bench.footage.embeddings, bench.suite.dying_sessions, victims)
    stays = bench.client(returning.die, *given, _BACK_WITHIN_S)
    whole_again = _seconds_until_whole(server, dict.fromkeys(parts, replicas), set(victims))
    affected = [stay for stay in stays if stay["affected"]]
    backs = [stay["back_s"] for stay in affected]
    return {
        "sessions": len(stays),
        "affected": len(affected),
        "first_s": min((back for back in backs if back is not None), default=None),
        "last_s": None if not backs or None in backs else max(backs),
        "lost_frames": sum(stay["lost_frames"] for stay in stays),
        "dropped": sum(stay["dropped"] for stay in stays),
        "stays": stays,
        "whole_again_s": whole_again,
    }


def _seconds_until_whole(server: ServeServer, wanted: dict[str, int], dead: set[int]) -> float | None:
    """Until as many processes as before take sessions, from when the clients were back; None: never."""
    began = time.perf_counter()
    while time.perf_counter() - began < _BACK_WITHIN_S:
        roles = server.roles()
        alive = {part: [each for each in roles[part] if each.pid not in dead] for part in wanted}
        if all(len(alive[part]) >= number for part, number in wanted.items()):
            try:
                wait_until_ready(server.url)
            except ProspectError:
                return None
            time.sleep(_SETTLING_S)
            return time.perf_counter() - began
        time.sleep(0.2)
    return None


def _soak(bench: Bench, add: Add) -> None:
    """A crowd for a long time, and what two engines and two gateways take meanwhile; some of them are killed."""
    suite, store = bench.suite, bench.folder / "sessions.db"
    server = bench.served(2)
    whole, began, killed = server.roles(), time.monotonic(), 0.0
    rates = (suite.soak_frames_per_s, suite.soak_stays_s, suite.soak_people, suite.soak_s)
    crowd = bench.client.submit(soak.crowd, server.url, opening(suite), bench.footage.embeddings, *rates, suite.seed)
    for part in itertools.cycle(("engine", "gateway")):
        while not crowd.done() and time.monotonic() - began - killed < suite.soak_kill_every_s:
            add(taken.sample(server, store, began))
            time.sleep(suite.soak_sample_every_s)
        if crowd.done():
            break
        killed = time.monotonic() - began
        victims = server.roles()[part]
        if len(victims) == len(whole[part]):  # the last one is replaced
            kill(victims[0])
            add({"at_s": killed, "killed": part})
    add({"counts": crowd.result()})


STAGES: dict[Stage, Callable[[Bench, Add], None]] = {
    "ready": _ready,
    "paced": _paced,
    "unloaded": _unloaded,
    "saturation": _saturation,
    "neighbour": _neighbour,
    "durability": _durability,
    "recovery": _recovery,
    "soak": _soak,
}
