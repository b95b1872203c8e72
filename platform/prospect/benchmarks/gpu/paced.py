"""Sessions at 2 frames/s: the numbers asked for, then the highest that keeps the limits of suite=engine."""

import time

from prospect.benchmarks.engine.measure import MIB, kv_bytes, largest, measure_paced, to_json
from prospect.benchmarks.gpu.bench import Bench
from prospect.benchmarks.journal import Add
from prospect.dialogue.timeline import FPS
from prospect.errors import OutOfPagesError, SessionError
from prospect.messages import first_line
from prospect.streaming.kv_cache.sizing import make_pool

_MARGIN = 1.2
"""Of the time that a measurement should take: what must be left for it."""


def pace(bench: Bench, add: Add) -> None:
    """Measure each number of sessions, then search for the highest, from what memory holds downwards."""
    pacing = _Pacing(bench, add)
    for sessions in bench.suite.paced:
        pacing.measure(sessions)
    most = _room(bench)
    highest = largest(pacing.fits, most, most)
    add({"highest": highest, "room_for": most, "cut_short": pacing.cut_short})


class _Pacing:
    """Attributes: `cut_short`: the search ended for want of time."""

    def __init__(self, bench: Bench, add: Add) -> None:
        self._bench, self._add = bench, add
        self._holds: dict[int, bool] = {}
        self._fill_s = 0.0
        """Seconds that opening and filling one session took at most."""
        self.cut_short = False

    def measure(self, sessions: int) -> None:
        suite, began, seconds = self._bench.suite, time.perf_counter(), self._seconds(sessions)
        engine = suite.engine(seconds=seconds)
        self._holds[sessions] = False
        try:
            live, memory = measure_paced(self._bench.loaded, engine, self._bench.streaming, sessions, suite.context)
        except (OutOfPagesError, SessionError) as error:
            self._add({"sessions": sessions, "error": first_line(error)})
            return
        self._holds[sessions] = live.within(engine)
        self._fill_s = max(self._fill_s, (time.perf_counter() - began - seconds) / sessions)
        kv_mib = suite.context * kv_bytes(self._bench.loaded.model) / MIB
        sizes = {"sessions": sessions, "holds": self._holds[sessions], "session_mib": memory, "kv_mib": kv_mib}
        self._add(to_json(live) | sizes)

    def fits(self, sessions: int) -> bool:
        """Whether so many keep the limits; what fewer or more sessions showed is not measured again."""
        if any(holds and known >= sessions for known, holds in self._holds.items()):
            return True
        if any(not holds and known <= sessions for known, holds in self._holds.items()):
            return False
        if self._bench.seconds_left() < _MARGIN * (self._seconds(sessions) + sessions * self._fill_s):
            self.cut_short = True
            return False
        self.measure(sessions)
        return self._holds[sessions]

    def _seconds(self, sessions: int) -> float:
        """Of a paced measurement."""
        return max(self._bench.suite.paced_seconds, self._bench.suite.decisions / (sessions * FPS))


def _room(bench: Bench) -> int:
    """Full sessions for which the cache has pages, at most `most_sessions`."""
    suite = bench.suite
    settings = bench.streaming.model_copy(update={"max_sessions": suite.most_sessions})
    pool = make_pool(bench.loaded.model, settings, suite.context)
    return pool.num_pages // pool.pages_for(suite.context)
