"""`prospect status` and `prospect test`: their command lines."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence

import httpx

from prospect.client import ProspectClient, ServerError
from prospect.client.ledger import UNREACHABLE
from prospect.errors import ConfigError
from prospect.messages import first_line
from prospect.percentiles import Percentiles
from prospect.probe.checks import Check, check
from prospect.probe.clip import draw_clip
from prospect.probe.stream import Trial
from prospect.protocol.messages import ServerStatus

URL = "http://127.0.0.1:8000"
ANSWERS_WITHIN_S = 15.0
STATUS_USAGE = f"""usage: prospect status [URL]

Say in ten lines how the deployment at URL ({URL}) is. Exit status 0 if its health is ok, 1 if it is not or nothing
answers, 2 for a mistake here. A server with API keys is asked with PROSPECT_API_KEY."""
TEST_USAGE = f"""usage: prospect test [URL] [speed=N]

Stream a drawn clip through the deployment at URL ({URL}), N times as fast as a camera would (1), and check what comes
back. Exit status 0 if all checks are ok, 1 if one is not or nothing answers, 2 for a mistake here. A server with API
keys is asked with PROSPECT_API_KEY."""
_SHOWN_EVERY_S = 5.0
"""Seconds between two lines of progress, where they cannot be overwritten."""


def status(arguments: Sequence[str]) -> int:
    """Print how a deployment is; returns the exit status."""
    return _run(arguments, STATUS_USAGE, {}, _status)


def test(arguments: Sequence[str]) -> int:
    """Stream a clip through a deployment and print what holds; returns the exit status."""
    return _run(arguments, TEST_USAGE, {"speed": 1.0}, _test)


def _run(
    arguments: Sequence[str],
    usage: str,
    options: dict[str, float],
    command: Callable[[ProspectClient, dict[str, float]], bool],
) -> int:
    if {"-h", "--help"} & set(arguments):
        print(usage)
        return 0
    try:
        url, options = _parsed(arguments, options)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        with ProspectClient(url, timeout=ANSWERS_WITHIN_S) as client:
            return 0 if command(client, options) else 1
    except ServerError as error:
        problem = str(error)
    except (httpx.HTTPError, *UNREACHABLE) as error:
        problem = f"nothing answers at {url}: {first_line(error)}"
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(f"error: {problem}", file=sys.stderr)
    return 1


def _parsed(arguments: Sequence[str], options: dict[str, float]) -> tuple[str, dict[str, float]]:
    """The URL and the options.

    Raises:
        ConfigError: one of them cannot be read.
    """
    urls = [each for each in arguments if "=" not in each or "://" in each]
    if len(urls) > 1:
        raise ConfigError(f"expected one URL, not {len(urls)}: {', '.join(urls)}", field="url")
    url = urls[0] if urls else URL
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"URL ({url}) must begin with http:// or https://, for example {URL}", field="url")
    given = dict(options)
    for each in arguments:
        name, _, text = each.partition("=")
        if each in urls:
            continue
        if name not in options:
            allowed = ", ".join(options) or "none"
            raise ConfigError(f"`{name}` is not an option here; allowed: {allowed}", field=name)
        try:
            given[name] = float(text)
        except ValueError:
            given[name] = 0.0
        if not 0 < given[name] < float("inf"):
            raise ConfigError(f"`{name}` ({text}) must be a number above 0", field=name)
    return url, given


# Status ------------------------------------------------------------------------------------------------------


def _status(client: ProspectClient, options: dict[str, float]) -> bool:
    found = client.status()
    for label, text in status_lines(found):
        print(f"{label:9} {text}")
    return found.health == "ok"


def status_lines(found: ServerStatus) -> Iterator[tuple[str, str]]:
    """At most ten lines, each a word and what is to be said of it."""
    yield "health", found.health
    yield "ready", "yes" if found.ready else f"no: {found.reason}"
    yield "model", "unknown" if found.model is None else found.model.version or found.model.name
    yield "processes", f"{found.engines} engines, {found.gateways} gateways, {found.encoders} encoders"
    yield "sessions", f"{found.sessions} of {found.capacity}"
    yield "decisions", f"{found.decisions_per_second:.1f}/s"
    p50, p95 = (1000 * each for each in (found.step_seconds.p50, found.step_seconds.p95))
    yield "steps", f"p50 {p50:.1f} ms, p95 {p95:.1f} ms" if p95 else "none in the last ten seconds"
    yield "drops", f"{found.dropped_frames} frames"
    yield "store", "none" if found.store == "none" else f"{found.store}, {found.store_lag_seconds:.1f} s behind"
    yield "moves", _moves(found)


def _moves(found: ServerStatus) -> str:
    last = found.last_move
    if last is None:
        return "none"
    lost = f", {last.lost_frames} frames lost" if last.lost_frames else ""
    return f"{found.moves}, the last {last.seconds_ago:.0f} s ago took {last.seconds:.2f} s{lost}"


# Test --------------------------------------------------------------------------------------------------------


def _test(client: ProspectClient, options: dict[str, float]) -> bool:
    model = client.model()
    clip = draw_clip(model)
    kind = "pictures" if model.accepts_images else "embeddings"
    pace = model.fps * options["speed"]
    print(f"{client.url}: {model.version or model.name}; {len(clip.frames)} {kind}, {pace:g} a second", flush=True)
    streamed = Trial(client, clip, 1 / pace, _Progress()).run()
    checks = check(streamed, len(clip.steps))
    for line in table(checks, streamed.waits):
        print(line)
    return all(each.ok for each in checks)


class _Progress:
    """A line that is overwritten in a terminal, and written every few seconds elsewhere."""

    def __init__(self) -> None:
        self._shown = time.monotonic()
        self._live = sys.stdout.isatty()

    def __call__(self, answered: int, total: int) -> None:
        if self._live:
            print(f"\r{answered}/{total} frames answered", end="\n" if answered == total else "", flush=True)
        elif time.monotonic() - self._shown >= _SHOWN_EVERY_S:
            self._shown = time.monotonic()
            print(f"{answered}/{total} frames answered", flush=True)


def table(checks: Sequence[Check], waits: Sequence[float]) -> Iterator[str]:
    """A line for each check, and one for the latency of decisions."""
    width = max(len(each.name) for each in checks)
    for each in checks:
        yield f"{'ok' if each.ok else 'FAILED':7} {each.name:{width}}  {each.found}"
    latency = Percentiles.of(waits)
    yield f"latency from sending a frame to its decision: p50 {latency.p50:.0f} ms, p95 {latency.p95:.0f} ms"
