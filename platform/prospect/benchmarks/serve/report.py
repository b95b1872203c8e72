"""The tables and the picture of suite=serve, made from the raw JSON.

`python -m prospect.benchmarks.serve.report FILE` prints the tables.
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from prospect.benchmarks.journal import StageResult
from prospect.benchmarks.serve.taken import MEASURES

LEAST = {"p50": 20, "p95": 200, "p99": 1000}
"""Fewest values over which a percentile is printed."""
LATE_MS = 5.0
"""p99 of the client's own lateness above which a row is marked."""
NAMES = {"engine": "bare engine", "host": "host, no Ray", "serve": "Ray Serve", "direct": "Ray Serve, own port"}
_MARKED = "QUICK run; its numbers say little"
_INSIDE = ("engine", "host")
"""Parts of a server that hold the engine."""


def to_markdown(content: dict[str, Any]) -> str:
    """Everything that the file holds, as the section of docs/benchmarks.md."""
    return "\n\n".join([headline(content), *(stage_table(content, name) for name in content["stages"])])


def headline(content: dict[str, Any]) -> str:
    """What the numbers belong to."""
    machine, suite, model = content["machine"], content["suite"], content["model"]
    size = model["base"] if model["base"] != "tiny" else f"tiny ({model['tiny']['hidden_size']} wide)"
    return (
        f"{_mark(content)}suite=serve, commit {content['commit']}, {content['at']}: {machine['device']}, "
        f"{machine['cores']} cores, load average {machine['load_average']:.1f} before; {size}, {model['dtype']}, "
        f"random weights, {content['vision']['tokens_per_frame']} token(s) a frame, contexts of "
        f"{content['context']['max_seq_len']:,} tokens; speaks at {suite['speak_rate']:.0%} of the frames, "
        f"{suite['utterance_tokens']} tokens each; {suite['steps']} steps."
    )


def stage_table(content: dict[str, Any], name: str) -> str:
    """One stage: its title, its rows as a table, and in one line what failed."""
    stage = content["stages"][name]
    title, table = _TABLES[name]
    seconds = "" if stage["seconds"] is None else f" ({stage['seconds']:.0f} s)"
    lines = [f"**{title.format(**content['suite'])}**{seconds} {_mark(content)}".rstrip(), ""]
    lines += table(stage["rows"]) if stage["rows"] else []
    if stage["status"] in ("waiting", "running"):
        lines.append("not finished")
    if stage["error"]:
        lines += ["", f"FAILED: {stage['error']}"]
    return "\n".join(lines)


def failures(content: dict[str, Any]) -> list[str]:
    """Stages that failed."""
    return [name for name, stage in content["stages"].items() if stage["status"] != "done"]


def percentile(values: dict[str, Any], name: str) -> str:
    """Milliseconds, where there are enough values for this percentile to mean something."""
    if values["number"] < LEAST[name]:
        return "-"
    return f"{values[name]:.0f}" if values[name] >= 100 else f"{values[name]:.1f}"


def plot(content: dict[str, Any], file: Path) -> None:
    """Latency of a decision over the number of sessions, a panel for each kind of frames, where there are enough."""
    from matplotlib.figure import Figure  # takes a second to import

    rows = [row for name in ("unloaded", "paced") for row in content["stages"].get(name, {}).get("rows", [])]
    rows = [row for row in rows if row["decision"]["number"] >= LEAST["p50"]]
    kinds = [kind for kind in ("pictures", "embeddings") if any(row["kind"] == kind for row in rows)]
    if not kinds:
        return
    figure = Figure(figsize=(4.2 * len(kinds) + 1.6, 3.3), layout="constrained")
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axis, kind in zip(axes, kinds, strict=True):
        for system, style in _STYLES.items():
            chosen = [row for row in rows if row["system"] == system and row["kind"] in (kind, _only_kind(system))]
            chosen.sort(key=lambda row: row["sessions"])
            for name, colour in _COLOURS.items():
                points = [row for row in chosen if row["decision"]["number"] >= LEAST[name]]
                numbers, values = [row["sessions"] for row in points], [row["decision"][name] for row in points]
                axis.plot(numbers, values, style, color=colour, marker=".", label=f"{NAMES[system]}, {name}")
        numbers = sorted({row["sessions"] for row in rows if row["kind"] == kind})
        axis.set_xscale("log", base=2)
        axis.set_xticks(numbers, [str(number) for number in numbers])
        axis.set(xlabel="sessions at 2 frames/s", yscale="log", title=kind)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.25)
    axes[0].set(ylabel="decision, ms")
    lines = {line.get_label(): line for axis in axes for line in axis.get_lines() if len(line.get_xdata())}
    figure.legend(lines.values(), lines.keys(), loc="outside right center", frameon=False, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, metadata={"Software": None})


_STYLES = {"engine": ":", "host": "--", "serve": "-", "direct": "-."}
_COLOURS = {"p50": "#009e73", "p95": "#e69f00", "p99": "#d55e00"}


def _only_kind(system: str) -> str:
    """What the bare engine is given stands in every panel."""
    return "embeddings" if system == "engine" else ""


def _mark(content: dict[str, Any]) -> str:
    return f"[{_MARKED}] " if content["quick"] else ""


def _lines(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(row)} |" for row in cells]


def _three(values: dict[str, Any]) -> list[str]:
    return [percentile(values, name) for name in LEAST]


def _bare(rows: Sequence[StageResult], **equal: Any) -> StageResult | None:
    """The bare engine's row of the same size."""
    wanted = {"system": "engine", **equal}
    return next((row for row in rows if all(row[name] == value for name, value in wanted.items())), None)


def _beyond(row: StageResult, bare: StageResult | None) -> list[str]:
    """What a percentile has beyond the bare engine's."""
    if bare is None or bare is row:
        return ["", ""]
    texts = []
    for name in ("p50", "p99"):
        values = row["decision"], bare["decision"]
        known = all(each["number"] >= LEAST[name] for each in values)
        texts.append(f"{values[0][name] - values[1][name]:.1f}" if known else "-")
    return texts


def _latencies(rows: Sequence[StageResult]) -> list[str]:
    columns = [
        "system", "frames", "sessions", "decision p50, ms", "p95", "p99", "n", "beyond the engine p50", "p99",
        "done/s of asked", "dropped", "first words p50, ms", "p95", "n", "utterance p50, ms", "client late p99",
    ]  # fmt: skip
    cells = []
    for row in rows:
        late = row.get("client_late")
        words = row["first_words"]
        cells.append(
            [
                NAMES[row["system"]],
                row["kind"],
                str(row["sessions"]),
                *_three(row["decision"]),
                str(row["decision"]["number"]),
                *_beyond(row, _bare(rows, sessions=row["sessions"])),
                f"{row['done_per_s']:.1f} of {row['asked_per_s']:.0f}",
                str(row.get("dropped", 0)),
                percentile(words, "p50"),
                percentile(words, "p95"),
                str(words["number"]),
                percentile(row["utterance"], "p50"),
                "" if late is None else _late(late),
            ]
        )
    return _lines(columns, cells)


def _late(values: dict[str, Any]) -> str:
    if values["p99"] is None:
        return "-"
    return f"{values['p99']:.1f}" + (" LATE" if values["p99"] > LATE_MS else "")


def _paced(rows: Sequence[StageResult]) -> list[str]:
    return [*_latencies(rows), "", *_cpu(rows)]


def _cpu(rows: Sequence[StageResult]) -> list[str]:
    """CPU milliseconds a frame by process."""
    parts = ["proxy", "gateway", "encoder", "engine", "host", "client", "ray"]
    named = ["proxy", "gateway", "encoder", "engine", "host's process", "client", "Ray's other processes"]
    columns = ["CPU ms a frame", "frames", "sessions", *named, "outside the engine's work", "without the encoder"]
    cells = []
    for row in rows:
        spent = row["cpu_ms"]
        bare = _bare(rows, sessions=row["sessions"])
        cells.append(
            [
                NAMES[row["system"]],
                row["kind"],
                str(row["sessions"]),
                *(f"{spent[part]:.1f}" if part in spent else "" for part in parts),
                *_outside(row, bare),
            ]
        )
    return _lines(columns, cells)


def _outside(row: StageResult, bare: StageResult | None) -> list[str]:
    """Proxy, gateway, encoder, and what the engine's process takes beyond the bare engine; the same, no encoder."""
    if bare is None or bare is row:
        return ["", ""]
    spent = row["cpu_ms"]
    server = sum(spent.get(part, 0.0) for part in ("proxy", "gateway", "encoder", *_INSIDE))
    outside = server - bare["cpu_ms"]["engine"]
    return [f"{outside:.1f}", f"{outside - spent['encoder']:.1f}" if "encoder" in spent else ""]


def _saturation(rows: Sequence[StageResult]) -> list[str]:
    columns = ["system", "frames", "in flight a session", "decisions/s", "lost", "dropped", "CPU ms a frame"]
    cells = []
    for row in rows:
        bare = _bare(rows, in_flight=row["in_flight"])
        lost = "" if bare is None or bare is row else f"{1 - row['per_s'] / bare['per_s']:.0%}"
        spent = ", ".join(f"{part} {value:.1f}" for part, value in row["cpu_ms"].items())
        named = [NAMES[row["system"]], row["kind"], str(row["in_flight"]), f"{row['per_s']:.0f}"]
        cells.append([*named, lost, str(row.get("dropped", 0)), spent])
    pinned = "the engine on one core, everything else on another" if rows[0]["pinned"] else "no cores reserved"
    return [*_lines(columns, cells), "", f"Cores: {pinned}."]


def _neighbour(rows: Sequence[StageResult]) -> list[str]:
    columns = [
        "neighbour sends", "messages", "a second", "bytes each", "refused", "others p50, ms", "p95", "p99", "n",
        "p99 of quiet", "done/s of asked", "dropped",
    ]  # fmt: skip
    quiet = next((row for row in rows if row["noise"] == "nobody"), None)
    cells = []
    for row in rows:
        values = row["decision"]
        known = quiet is not None and min(values["number"], quiet["decision"]["number"]) >= LEAST["p99"]
        refused = ", ".join(f"{code} {number}" for code, number in row["refused"].items())
        cells.append(
            [
                row["noise"],
                str(row["sent"]),
                f"{row['sent'] / row['seconds']:.1f}",
                f"{row['bytes']:,}",
                refused or "none",
                *_three(values),
                str(values["number"]),
                f"{values['p99'] / quiet['decision']['p99']:.1f}x" if known and quiet is not None else "-",
                f"{row['done_per_s']:.1f} of {row['asked_per_s']:.0f}",
                str(row["dropped"]),
            ]
        )
    return [*_lines(columns, cells), "", f"On {NAMES[rows[0]['system']]}."]


def _durability(rows: Sequence[StageResult]) -> list[str]:
    columns = [
        "durability", "silent decision p50, ms", "p95", "p99", "n", "first words p50, ms", "p95", "n",
        "utterance p50, ms", "p95", "CPU ms a frame",
    ]  # fmt: skip
    cells = []
    for row in rows:
        words, utterance = row["first_words"], row["utterance"]
        cells.append(
            [
                row["durability"],
                *_three(row["decision"]),
                str(row["decision"]["number"]),
                percentile(words, "p50"),
                percentile(words, "p95"),
                str(words["number"]),
                percentile(utterance, "p50"),
                percentile(utterance, "p95"),
                f"{row['cpu_ms']['host']:.1f}",
            ]
        )
    return _lines(columns, cells)


def _recovery(rows: Sequence[StageResult]) -> list[str]:
    columns = [
        "killed", "sessions", "affected", "first decision, s", "last session's, s", "frames lost", "dropped",
        "whole again after, s",
    ]  # fmt: skip
    cells = []
    for row in rows:
        times = ["-" if row[name] is None else f"{row[name]:.1f}" for name in ("first_s", "last_s")]
        counts = [str(row[name]) for name in ("lost_frames", "dropped")]
        named = [row["death"], str(row["sessions"]), str(row["affected"])]
        whole = row["whole_again_s"]
        cells.append([*named, *times, *counts, "NEVER" if whole is None else f"{whole:.0f}"])
    return _lines(columns, cells)


def _soak(rows: Sequence[StageResult]) -> list[str]:
    """The medians of the first and of the last quarter, so that what grows is seen, and what happened."""
    samples = [row for row in rows if "parts" in row]
    quarter = max(1, len(samples) // 4)
    columns = ["of", "first quarter", "last quarter"]
    cells = []
    for part in ("gateway", "engine", "proxy"):
        for name, label in MEASURES.items():
            found = [row["parts"][part][name] for row in samples if part in row["parts"]]
            cells.append([f"{part}: {label}", *(f"{median(each):.0f}" for each in (found[:quarter], found[-quarter:]))])
    for name, label in (("store_mib", "store, MiB"), ("health_ms", "/healthz, ms")):
        found = [row[name] for row in samples]
        cells.append([label, *(f"{median(each):.1f}" for each in (found[:quarter], found[-quarter:]))])
    counts = [f"{number} {name}" for row in rows for name, number in sorted(row.get("counts", {}).items())]
    deaths = sum("killed" in row for row in rows)
    return [*_lines(columns, cells), "", f"{deaths} processes killed; {', '.join(counts) or 'not finished'}."]


def _ready(rows: Sequence[StageResult]) -> list[str]:
    columns = ["`serve run` until ready, s", "Ctrl-C until ended, s"]
    ends = ["did not end" if row["ended_s"] is None else f"{row['ended_s']:.1f}" for row in rows]
    return _lines(columns, [[f"{row['ready_s']:.1f}", end] for row, end in zip(rows, ends, strict=True)])


_TABLES: dict[str, tuple[str, Callable[[Sequence[StageResult]], list[str]]]] = {
    "ready": ("Start and end", _ready),
    "paced": ("Sessions at 2 frames/s", _paced),
    "unloaded": ("One session, all systems in the same minutes", _latencies),
    "saturation": ("Saturation, {saturated_sessions} sessions", _saturation),
    "neighbour": ("{neighbours} sessions with pictures beside a client that sends the largest messages", _neighbour),
    "durability": (
        "Durability: {durable_sessions} sessions on the host without Ray, speaks at {durable_rate:.0%} of the frames",
        _durability,
    ),
    "recovery": ("Seconds from kill -9 to the next decision", _recovery),
    "soak": ("{soak_people} clients that come and go for {soak_s:.0f} s on two engines and two gateways", _soak),
}
"""Title and table of each stage."""


if __name__ == "__main__":
    print(to_markdown(json.loads(Path(sys.argv[1]).read_text())))
