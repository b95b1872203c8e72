"""The tables of suite=gpu, all made from the raw JSON. `python -m prospect.benchmarks.gpu.report FILE` prints them."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prospect.benchmarks.journal import StageResult

LEAST = {"p50": 1000, "p95": 200, "p99": 1000}
"""Fewest values over which a percentile is printed."""
_GIB = 2**30
_MARKED = "REHEARSAL on a CPU with a tiny model; no number here is one of a GPU"


def to_markdown(content: dict[str, Any]) -> str:
    """Everything that the file holds, as the section of docs/benchmarks.md."""
    tables = [stage_table(content, name) for name in content["stages"]]
    return "\n\n".join([headline(content), *tables])


def headline(content: dict[str, Any]) -> str:
    """What the numbers belong to."""
    machine, suite = content["machine"], content["suite"]
    versions = f"torch {machine['torch']}, transformers {machine['transformers']}"
    memory = f" ({machine['gpu_memory_gib']} GiB)" if "gpu_memory_gib" in machine else ""
    return (
        f"{_mark(content)}suite=gpu, commit {content['commit']}, {content['at']}: {machine['device']}{memory}, "
        f"{machine['cores']} cores, {versions}; {suite['base']}, {suite['dtype']}, random weights, one token a frame."
    )


def stage_table(content: dict[str, Any], name: str) -> str:
    """One stage: its title, its rows as a table, and in one line what failed."""
    stage, suite = content["stages"][name], content["suite"]
    title, table = _TABLES[name]
    seconds = "" if stage["seconds"] is None else f" ({stage['seconds']:.0f} s)"
    lines = [f"**{title.format(**suite)}**{seconds} {_mark(content)}".rstrip(), ""]
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
    return f"{values[name]:.1f}" if values["number"] >= LEAST[name] else "-"


def _mark(content: dict[str, Any]) -> str:
    return f"[{_MARKED}] " if content["rehearsal"] else ""


def _lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(row)} |" for row in cells]


def _all(values: dict[str, Any]) -> list[str]:
    return [*(percentile(values, name) for name in LEAST), str(values["number"])]


def _inventory(rows: Sequence[StageResult]) -> list[str]:
    return _lines(["what", "found", "for"], [[row["what"], row["found"] or "MISSING", row["for"]] for row in rows])


def _tests(rows: Sequence[StageResult]) -> list[str]:
    counts, *failed = rows
    numbers = [str(counts[name]) for name in ("passed", "failed", "skipped")]
    lines = _lines(["passed", "failed", "skipped", "s"], [[*numbers, f"{counts['seconds']:.0f}"]])
    return lines + [f"- {row['test']}: {row['why']}" for row in failed]


def _floor(rows: Sequence[StageResult]) -> list[str]:
    columns = ["weights, GiB", "memory, TB/s", "floor, ms", "step p50, ms", "p95", "p99", "n", "times the floor", "by"]
    return _lines(
        columns,
        [
            [
                f"{row['weight_bytes'] / _GIB:.2f}",
                f"{row['bandwidth'] / 1e12:.2f}",
                f"{row['floor_ms']:.2f}",
                *_all(row["step_ms"]),
                f"{row['times_the_floor']:.2f}" if row["step_ms"]["number"] >= LEAST["p50"] else "-",
                f"{row['attention']}, pages of {row['page_tokens']}",
            ]
            for row in rows
        ],
    )


def _attention(rows: Sequence[StageResult]) -> list[str]:
    columns = [
        "backend",
        "pages",
        "graphs",
        "frames/s",
        "step mean, ms",
        "decision p50, ms",
        "p95",
        "p99",
        "n",
        "deviation",
    ]
    cells = []
    for row in rows:
        way = [row["backend"], str(row["page_tokens"]), "captured" if row["graphs"] else "none"]
        if "error" in row:
            cells.append([*way, f"does not run: {row['error']}", *["-"] * 6])
            continue
        speed = [f"{row['frames_per_s']:.0f}", f"{row['step_mean_ms']:.2f}"]
        cells.append([*way, *speed, *_all(row["latency"]), f"{row['deviation']:.1e}"])
    return _lines(columns, cells)


def _saturation(rows: Sequence[StageResult]) -> list[str]:
    columns = [
        "sessions", "frames/s", "of the bound", "decision p50, ms", "p95", "p99", "n", "without lm_head",
        "MiB a session",
    ]  # fmt: skip
    cells = []
    for row in rows:
        if "error" in row:
            cells.append([str(row["sessions"]), f"left out: {row['error']}", *["-"] * 7])
            continue
        speed = [f"{row['frames_per_s']:.0f}", f"{row['share_of_bound']:.0%}"]
        rest = [f"{row['fast_share']:.1%}", f"{row['session_mib']:.0f}"]
        cells.append([str(row["sessions"]), *speed, *_all(row["latency"]), *rest])
    return _lines(columns, cells)


def _paced(rows: Sequence[StageResult]) -> list[str]:
    columns = [
        "sessions", "frame p50, ms", "p95", "p99", "n", "free frames p50, ms", "p95", "p99", "n",
        "first token mean, ms", "p95", "n", "MiB a session", "of which keys and values", "",
    ]  # fmt: skip
    cells, notes = [], []
    for row in rows:
        if "highest" in row:
            end = "; the search ended for want of time" if row["cut_short"] else ""
            limits = "p99 below 100 ms (free frames) and 1 s (all)"
            notes = ["", f"Highest with {limits}: {row['highest']} sessions; memory for {row['room_for']}{end}."]
        elif "error" in row:
            cells.append([str(row["sessions"]), f"left out: {row['error']}", *["-"] * 13])
        else:
            first = row["first_token"]
            mean = f"{first['mean']:.0f}" if first["number"] else "-"
            sizes = [f"{row['session_mib']:.0f}", f"{row['kv_mib']:.0f}"]
            words = "holds" if row["holds"] else "fell behind" if row["gave_up"] else "late"
            latencies = [*_all(row["all"]), *_all(row["free"]), mean, percentile(first, "p95"), str(first["number"])]
            cells.append([str(row["sessions"]), *latencies, *sizes, words])
    return _lines(columns, cells) + notes


def _lora(rows: Sequence[StageResult]) -> list[str]:
    columns = ["way", "tokens/s", "MFU", "peak, GiB", "planned, GiB"]
    return _lines(
        columns,
        [
            [
                row["name"],
                f"{row['tokens_per_second']:,.0f}",
                "-" if row["utilisation"] is None else f"{row['utilisation']:.0%}",
                *(f"{row[size] / _GIB:.1f}" for size in ("peak_bytes", "planned_bytes")),
            ]
            for row in rows
        ],
    )


def _siglip(rows: Sequence[StageResult]) -> list[str]:
    columns = ["encoder", "torch.compile", "batch", "images/s"]
    return _lines(
        columns,
        [
            [row["model"], "yes" if row["compiled"] else "no", str(row["batch"]), f"{row['images_per_s']:.0f}"]
            for row in rows
        ],
    )


_TABLES: dict[str, tuple[str, Callable[[Sequence[StageResult]], list[str]]]] = {
    "missing": ("What is here", _inventory),
    "tests": ("CUDA tests", _tests),
    "floor": ("One session's frame step over the weight-streaming floor, {context} tokens", _floor),
    "attention": ("Attention backends, {attention_sessions} sessions of {context} tokens in saturation", _attention),
    "saturation": ("Saturation, {context} tokens a session, speaks at {speak_rate:.0%} of the frames", _saturation),
    "paced": ("Paced at 2 frames/s, {context} tokens a session, speaks at {speak_rate:.0%} of the frames", _paced),
    "lora": ("LoRA step of {lora_tokens} tokens, rank 128", _lora),
    "smolvlm": ("One session's frame step of {second_base}", _floor),
    "siglip": ("Image encoder at {encoder_size} pixels", _siglip),
}
"""Title and table of each stage."""


if __name__ == "__main__":
    print(to_markdown(json.loads(Path(sys.argv[1]).read_text())))
