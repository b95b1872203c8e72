"""The engine benchmark's tables and pictures."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from prospect.benchmarks.engine.measure import Cell, Minute, Paced
from prospect.benchmarks.engine.settings import EngineSuite
from prospect.percentiles import Percentiles

NAMES = {
    "engine": "engine",
    "loop": "one session after another, DynamicCache",
    "padded": "one padded batch, DynamicCache",
}


def headline(suite: EngineSuite, machine: dict[str, Any]) -> str:
    """What the numbers belong to."""
    return (
        f"{suite.base}, {suite.dtype}, {suite.weights} weights; {machine['device']}, {machine['threads']} threads, "
        f"load average {machine['load_average']:.1f}; speaks at {suite.speak_rate:.1%} of the frames, "
        f"{suite.utterance_tokens} tokens each; one token a frame"
    )


def saturation_table(cells: Sequence[Cell], context: int) -> Table:
    """Frames/s of all systems at one context length."""
    table = _table(f"saturation, {context} tokens a session")
    table.add_column("system")
    for name in (
        "sessions", "frames/s", "of the loop's", "of the bound", "step p50, ms", "p99, ms", "without lm_head",
        "refreshes", "frames", "MiB a session", "KV by number",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    chosen = [cell for cell in cells if cell.context == context]
    loop = {cell.sessions: cell.frames_per_s for cell in chosen if cell.system == "loop"}
    for cell in chosen:
        rival = loop.get(cell.sessions)
        table.add_row(
            cell.system,
            str(cell.sessions),
            f"{cell.frames_per_s:.1f}",
            f"{cell.frames_per_s / rival:.1f}x" if rival else "-",
            f"{cell.share_of_bound:.0%}",
            f"{cell.step_ms.p50:.1f}",
            f"{cell.step_ms.p99:.1f}",
            f"{cell.fast_share:.1%}",
            str(cell.refreshes),
            str(cell.frames),
            f"{cell.session_mib:.1f}",
            f"{cell.kv_mib:.1f}",
        )
    return table


def paced_table(cells: Sequence[Cell], context: int) -> Table:
    """Latencies of all systems at one context length."""
    table = _latency_table(f"2 frames/s a session, {context} tokens a session, ms from when a frame was due")
    for cell in cells:
        if cell.context == context:
            _add_latencies(table, cell.system, cell.sessions, cell.paced)
    return table


def search_table(tried: dict[int, Paced], context: int, largest: int, suite: EngineSuite) -> Table:
    limits = f"p99 below {suite.free_p99_ms:g} ms (free) and {suite.all_p99_ms:g} ms (all)"
    table = _latency_table(f"{context} tokens: {largest} sessions with {limits}")
    for sessions in sorted(tried):
        _add_latencies(table, "engine", sessions, tried[sessions])
    return table


def soak_table(minutes: Sequence[Minute], context: int, sessions: int) -> Table:
    """First, middle and last minute."""
    table = _table(f"soak: {len(minutes)} minutes of {sessions} sessions of {context} tokens, as fast as they go")
    for name in ("minute", "frames/s", "p50, ms", "p99, ms", "refreshes", "memory, MiB"):
        table.add_column(name, justify="right")
    for number in sorted({0, min(1, len(minutes) - 1), len(minutes) // 2, len(minutes) - 1}):
        one = minutes[number]
        table.add_row(
            str(number + 1),
            f"{one.frames_per_s:.1f}",
            f"{one.latency.p50:.1f}",
            f"{one.latency.p99:.1f}",
            str(one.refreshes),
            f"{one.memory_mib:.0f}",
        )
    return table


def plot(cells: Sequence[Cell], soaks: dict[int, list[Minute]], folder: Path) -> list[Path]:
    """Writes latency.png, memory.png, throughput.png and soak.png, where there are numbers for them."""
    files = []
    contexts = sorted({cell.context for cell in cells})
    if any(cell.paced for cell in cells):
        files.append(_panels(contexts, folder / "latency.png", lambda axis, at: _latency(axis, cells, at)))
    if cells:
        files.append(_panels(contexts, folder / "throughput.png", lambda axis, at: _throughput(axis, cells, at)))
        files.append(_panels(contexts, folder / "memory.png", lambda axis, at: _memory(axis, cells, at)))
    if soaks:
        files.append(_panels(sorted(soaks), folder / "soak.png", lambda axis, at: _soak(axis, soaks[at])))
    return files


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)


def _latency_table(title: str) -> Table:
    table = _table(title)
    table.add_column("system")
    for name in ("sessions", "free p50", "p95", "p99", "all p50", "p95", "p99", "first token p50", "p99", "frames"):
        table.add_column(name, justify="right")
    table.add_column("")
    return table


def _add_latencies(table: Table, system: str, sessions: int, paced: Paced | None) -> None:
    if paced is None:
        table.add_row(system, str(sessions), *["-"] * 8, "too slow to be paced")
        return
    first = paced.first_token
    verdict = "fell behind" if paced.gave_up else "" if paced.in_real_time else "late"
    table.add_row(
        system,
        str(sessions),
        *_three(paced.free),
        *_three(paced.all),
        *(("-", "-") if not first.number else (f"{first.p50:.0f}", f"{first.p99:.0f}")),
        str(paced.all.number),
        verdict,
    )


def _three(values: Percentiles) -> Iterable[str]:
    return (f"{value:.0f}" for value in values[:3])


def _panels(contexts: Sequence[int], file: Path, draw: Any) -> Path:
    from matplotlib.figure import Figure  # a machine with a GPU and little else has none

    figure = Figure(figsize=(4.2 * len(contexts) + 1.4, 3.1), layout="constrained")
    axes = figure.subplots(1, len(contexts), sharey=True, squeeze=False)[0]
    for axis, context in zip(axes, contexts, strict=True):
        draw(axis, context)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.label_outer()
        axis.set_title(f"{context} tokens a session")
        axis.grid(alpha=0.25)
    lines = {line.get_label(): line for axis in axes for line in axis.get_lines() if line.get_label()[0] != "_"}
    figure.legend(lines.values(), lines.keys(), loc="outside right center", frameon=False, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, metadata={"Software": None})
    return file


_STYLES = {"engine": "-", "loop": "--", "padded": ":"}
_COLOURS = {"p50": "#009e73", "p95": "#e69f00", "p99": "#d55e00"}


def _of(cells: Sequence[Cell], context: int) -> Iterable[tuple[str, list[Cell]]]:
    for system in _STYLES:
        if chosen := [cell for cell in cells if (cell.system, cell.context) == (system, context)]:
            yield system, sorted(chosen, key=lambda cell: cell.sessions)


def _latency(axis: Any, cells: Sequence[Cell], context: int) -> None:
    for system, chosen in _of(cells, context):
        points = [(cell.sessions, cell.paced.free) for cell in chosen if cell.paced]
        for name, colour in _COLOURS.items():
            values = [getattr(free, name) for _, free in points]
            label = f"{system}, {name}"
            axis.plot([s for s, _ in points], values, _STYLES[system], color=colour, marker=".", label=label)
    axis.set(ylabel="decision, ms (no own generation)", yscale="log")
    _by_sessions(axis, cells, context)


def _throughput(axis: Any, cells: Sequence[Cell], context: int) -> None:
    for system, chosen in _of(cells, context):
        sessions = [cell.sessions for cell in chosen]
        speeds = [cell.frames_per_s for cell in chosen]
        axis.plot(sessions, speeds, _STYLES[system], color="#0072b2", marker=".", label=system)
    needed = sorted({cell.sessions for cell in cells if cell.context == context})
    axis.plot(needed, [2 * sessions for sessions in needed], color="0.6", linewidth=1, label="real time")
    axis.set(ylabel="frames/s in saturation", yscale="log")
    _by_sessions(axis, cells, context)


def _memory(axis: Any, cells: Sequence[Cell], context: int) -> None:
    for system, chosen in _of(cells, context):
        sessions = [cell.sessions for cell in chosen]
        sizes = [cell.session_mib for cell in chosen]
        axis.plot(sessions, sizes, _STYLES[system], color="#cc79a7", marker=".", label=system)
    full = next(cell.kv_mib for cell in cells if cell.context == context)
    axis.axhline(full, color="0.6", linewidth=1, label="keys and values by number")
    axis.set(ylabel="MiB a session", ylim=(0, None))
    _by_sessions(axis, cells, context)


def _by_sessions(axis: Any, cells: Sequence[Cell], context: int) -> None:
    """A tick for each number of sessions that was measured."""
    numbers = sorted({cell.sessions for cell in cells if cell.context == context})
    axis.set_xscale("log", base=2)
    axis.set_xticks(numbers, [str(number) for number in numbers])
    axis.set_xlabel("sessions")


def _soak(axis: Any, minutes: Sequence[Minute]) -> None:
    times = range(1, len(minutes) + 1)
    axis.plot(times, [one.latency.p99 for one in minutes], color=_COLOURS["p99"], label="p99, ms")
    axis.plot([], [], color="#0072b2", label="memory, MiB")
    axis.set(xlabel="minute", ylabel="p99 in saturation, ms", ylim=(0, None))
    other = axis.twinx()
    other.plot(times, [one.memory_mib for one in minutes], color="#0072b2")
    other.set(ylabel="memory, MiB", ylim=(0, 1.2 * max(one.memory_mib for one in minutes)))
