"""How many engines there are to be. Serve sends this module to its controller by value: it needs nothing of ours."""

from typing import Any

SESSIONS, STEP_S = "sessions", "step_s"
"""What an engine's replica reports: its sessions, and the mean duration of its latest steps."""


class SessionPolicy:
    """Asks for as many engines as the open sessions fill.

    Sessions do not travel by Serve's handles, so Serve's own count of requests says nothing of them.

    Args:
        target_sessions: with which an engine is full.
        max_step_s: of an engine's steps, with which it is full as well.
    """

    def __init__(self, target_sessions: float, max_step_s: float) -> None:
        self._target_sessions, self._max_step_s = target_sessions, max_step_s

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Return the number of engines that are needed, to which Serve applies its bounds and delays."""
        sessions = _latest(context, SESSIONS)
        steps = _latest(context, STEP_S)
        needed = sum(self._fill(count, steps.get(replica, 0.0)) for replica, count in sessions.items())
        if len(sessions) < context.current_num_replicas:  # one has not reported yet
            needed = max(needed, float(context.target_num_replicas))
        return needed, {}

    def _fill(self, sessions: float, step_s: float) -> float:
        return max(sessions / self._target_sessions, step_s / self._max_step_s)


def _latest(context: Any, name: str) -> dict[Any, float]:
    """The last report of each replica."""
    series = (context.raw_metrics or {}).get(name, {})
    return {replica: points[-1].value for replica, points in series.items() if points}
