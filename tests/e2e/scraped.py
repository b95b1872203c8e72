"""What Prometheus would get of this process's Ray."""

import math
import re
import time
from collections import defaultdict
from collections.abc import Mapping

import httpx
import ray

from prospect.monitoring import EXPORTED_AS

WITHIN_S = 30.0
_SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$")


def scrape() -> dict[str, float]:
    """Sums over processes and labels of all our series on the one node, by name without Ray's prefix."""
    [node] = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: dict[str, float] = defaultdict(float)
    for line in httpx.get(address, trust_env=False).text.splitlines():
        if (sample := _SAMPLE.match(line)) and sample[1].startswith(f"{EXPORTED_AS}prospect_"):
            found[sample[1].removeprefix(EXPORTED_AS)] += float(sample[3])
    return dict(found)


def scrape_until(least: Mapping[str, float]) -> dict[str, float]:
    """Scrape until all these series are there with at least these values: what was counted last is exported late."""
    deadline = time.monotonic() + WITHIN_S
    while True:
        found = scrape()
        if all(found.get(name, -math.inf) >= value for name, value in least.items()):
            return found
        assert time.monotonic() < deadline, f"{dict(least)} is not reached by {found}"
        time.sleep(0.5)
