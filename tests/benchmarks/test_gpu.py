"""suite=gpu on a CPU: every stage with a tiny model, what a stage that fails leaves, and what a bare machine lacks."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prospect.benchmarks.engine.measure import Paced
from prospect.benchmarks.gpu import bench, machine, paced, stages, suite, worker
from prospect.benchmarks.gpu.cuda_tests import REPOSITORY, cuda_files, run_cuda_tests
from prospect.benchmarks.gpu.journal import Journal
from prospect.benchmarks.gpu.report import LEAST, percentile, stage_table, to_markdown
from prospect.benchmarks.gpu.settings import GpuSuite, Stage, StageLimits
from prospect.benchmarks.journal import Add
from prospect.errors import ConfigError, OutOfPagesError
from prospect.percentiles import Percentiles
from prospect.streaming.settings import StreamingSettings

ALL = GpuSuite.model_fields["stages"].default
ABSENT = {
    "ray", "deepspeed", "mlflow", "av", "pandas", "sklearn", "scipy", "matplotlib", "fastapi", "sqlalchemy", "openai",
    "onnxruntime", "sentence_transformers", "bitsandbytes", "pyarrow", "hypothesis",
}  # fmt: skip
"""What the bare machine that the suite is for does without."""


def new_journal(folder: Path, *names: Stage, **settings: object) -> Journal:
    chosen = GpuSuite(rehearse=True, stages=names or ALL, **settings)
    described = machine.describe(chosen)
    return Journal.create(folder / "gpu.json", chosen, StreamingSettings(), described, "0123456")


def test_every_stage_is_rehearsed_on_a_cpu(tmp_path: Path) -> None:
    journal = new_journal(tmp_path, *(name for name in ALL if name != "tests"))
    worker.main(journal.file)
    content = Journal.load(journal.file).content
    assert {name: (each["status"], each["error"]) for name, each in content["stages"].items()} == dict.fromkeys(
        (name for name in ALL if name != "tests"), ("done", None)
    )
    assert [row["sessions"] for row in content["stages"]["saturation"]["rows"]] == [1, 2]
    assert content["stages"]["paced"]["rows"][-1]["room_for"] == 3
    sizing = {"paced": {"highest", "room_for", "cut_short"}, "siglip": {"images_per_s"}, "saturation": {"frames_per_s"}}
    for name, fields in sizing.items():  # docs/operations.md reads them
        assert fields <= set(content["stages"][name]["rows"][-1])
    assert content["stages"]["floor"]["rows"][0]["times_the_floor"] > 1
    assert len(content["stages"]["lora"]["rows"]) == 3
    text = to_markdown(content)
    tables = [line for line in text.splitlines() if line.startswith(("**", "["))]
    assert len(tables) == len(ALL)
    assert all("REHEARSAL" in line for line in tables)
    assert "NaN" not in journal.file.read_text()


def test_the_cuda_tests_are_found_and_skip_without_a_gpu() -> None:
    counts, *failed = run_cuda_tests(300)
    assert not failed
    assert counts["passed"] + counts["skipped"] >= 19
    assert torch.cuda.device_count() or not counts["passed"]


def test_a_stage_that_fails_says_so_and_the_next_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(shared: bench.Bench, add: Add) -> None:
        add({"what": "first", "found": None, "for": "a test"})
        raise RuntimeError("CUDA error: an illegal memory access\nmore")

    monkeypatch.setitem(stages.STAGES, "missing", broken)
    monkeypatch.setitem(stages.STAGES, "floor", lambda shared, add: None)
    journal = new_journal(tmp_path, "missing", "floor")
    worker.main(journal.file)
    content = Journal.load(journal.file).content
    assert content["stages"]["floor"]["status"] == "done"
    table = stage_table(content, "missing")
    assert "| first | MISSING | a test |" in table
    assert table.splitlines()[-1] == "FAILED: RuntimeError: CUDA error: an illegal memory access"


def test_a_stage_ends_at_its_limit_and_what_was_measured_stays(tmp_path: Path) -> None:
    chosen = GpuSuite(rehearse=True, stages=("missing", "floor"), limits=dict.fromkeys(ALL, 0.01))
    journal = suite.measure(chosen, StreamingSettings(), tmp_path)
    errors = [stage["error"] for stage in Journal.load(journal.file).content["stages"].values()]
    assert errors == ["ended at its limit of 0.01 s"] * 2
    assert journal.file.name.startswith("gpu-rehearsal-")


def test_a_process_that_dies_ends_one_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    journal = suite.measure(GpuSuite(rehearse=True, stages=("missing", "floor")), StreamingSettings(), tmp_path)
    assert [stage["error"] for stage in journal.content["stages"].values()] == ["its process ended with status 1"] * 2
    assert capsys.readouterr().out.count("FAILED: its process ended with status 1") == 2


def test_all_limits_together_are_less_than_six_minutes() -> None:
    assert sum(StageLimits().model_dump().values()) <= 350  # and the start of the process that drives them


def test_a_rehearsal_differs_in_configuration_only() -> None:
    assert GpuSuite(rehearse=True).engine().base == "tiny"
    assert GpuSuite(rehearse=True, context=512).context == 512
    assert GpuSuite().engine(seconds=3.0).base == "meta-llama/Llama-3.2-3B-Instruct"
    assert GpuSuite(**GpuSuite(rehearse=True).model_dump()) == GpuSuite(rehearse=True)


@pytest.mark.parametrize(
    ("number", "shown"),
    [(199, ["-"] * 3), (200, ["-", "2.0", "-"]), (999, ["-", "2.0", "-"]), (1000, ["1.0", "2.0", "3.0"])],
)
def test_a_percentile_is_printed_from_a_thousand_values_on(number: int, shown: list[str]) -> None:
    values = {"p50": 1.0, "p95": 2.0, "p99": 3.0, "number": number}
    assert [percentile(values, name) for name in LEAST] == shown


def test_card_sized_measurements_have_values_enough() -> None:
    card = GpuSuite()
    for sessions in card.saturated:
        assert stages._frames_of(card, sessions) * sessions >= 1000
    for sessions in card.paced:
        assert max(card.paced_seconds, card.decisions / (2 * sessions)) * 2 * sessions >= 1000
    assert card.floor_frames >= 1000


class _Held:
    """A bench whose engine keeps the limits up to some number of sessions."""

    def __init__(self, most: int, seconds: float) -> None:
        self.suite, self.most, self.ends = GpuSuite(paced_seconds=1), most, time.perf_counter() + seconds
        self.loaded, self.streaming = SimpleNamespace(model=None), None
        self.measured: list[int] = []

    def seconds_left(self) -> float:
        return self.ends - time.perf_counter()

    def measure_paced(
        self, loaded: None, engine: object, streaming: None, sessions: int, context: int
    ) -> tuple[Paced, float]:
        self.measured.append(sessions)
        if sessions > 300:
            raise OutOfPagesError("the cache is full")
        latency = Percentiles.of(np.full(2000, 0.05 if sessions <= self.most else 0.5))
        return Paced(latency, latency, latency, refreshes=0, gave_up=False), 448.0


@pytest.mark.parametrize(
    ("room", "most", "seconds", "highest"),
    [(240, 300, 60, 240), (240, 200, 60, 195), (240, 100, 60, 98), (400, 400, -1, 128)],
)
def test_the_highest_number_of_sessions(
    room: int, most: int, seconds: float, highest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, rows = _Held(most, seconds), []
    monkeypatch.setattr(paced, "measure_paced", held.measure_paced)
    monkeypatch.setattr(paced, "kv_bytes", lambda model: 1)
    monkeypatch.setattr(paced, "_room", lambda shared: room)
    paced.pace(held, rows.append)  # type: ignore[arg-type]
    assert rows[-1]["highest"] <= most
    assert rows[-1]["highest"] >= highest * 15 / 16
    assert rows[-1]["cut_short"] == (seconds < 0)
    assert len(held.measured) == len(set(held.measured)) == len(rows) - 1


@pytest.mark.parametrize(
    ("kernel_pages", "chosen"), [(64, ("varlen", 64)), (256, ("varlen", 256)), (None, ("flex", 64))]
)
def test_the_attention_of_the_card_is_found_once(
    kernel_pages: int | None, chosen: tuple[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Hopper's kernel takes pages of 64 tokens, Flash Attention 2 those of 256, and an older torch none."""

    def backend(name: str, page_tokens: int) -> None:
        if kernel_pages is None or page_tokens % kernel_pages:
            raise ConfigError("does not run here")

    monkeypatch.setattr(bench, "attention_backend", backend)
    monkeypatch.setattr(bench.Bench, "small_pool", lambda shared, settings: settings.page_tokens)
    settings = bench.Bench(GpuSuite(), StreamingSettings(), tmp_path).streaming
    assert (settings.attention, settings.page_tokens) == chosen


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nUpdate"),
            "newer NVIDIA driver",
        ),
        (RuntimeError("Found no NVIDIA driver on your system."), "needs an NVIDIA GPU"),
        (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled with CUDA enabled"),
    ],
)
def test_a_machine_without_a_usable_gpu_is_told_in_one_sentence(
    error: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "init", fail)
    with pytest.raises(ConfigError, match=sentence) as told:
        suite.measure(GpuSuite(), StreamingSettings(), tmp_path)
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


def test_a_card_without_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(ConfigError, match=r"Tesla T4 has compute capability 7\.5, bfloat16 needs 8\.0"):
        machine.require_gpu()


def test_nothing_on_its_path_needs_what_a_bare_machine_lacks() -> None:
    modules = ["jobs.benchmark", "prospect.benchmarks.gpu.worker", "prospect.benchmarks.gpu.suite"]
    modules += ["prospect.benchmarks.train.gpu", "prospect.benchmarks.embed.bare_encoder", "prospect.vision.towers"]
    modules += [".".join(file.relative_to(REPOSITORY).with_suffix("").parts) for file in cuda_files()]
    absent = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))"  # None: an import of it raises
    script = "\n".join([absent, *(f"import {name}" for name in modules)])
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_shows_what_the_raw_results_say() -> None:
    page = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    for file in REPOSITORY.glob("docs/results/gpu-*.json"):
        content = json.loads(file.read_text())
        assert not content["rehearsal"]
        assert content["commit"] != "unknown"
        for name in content["stages"]:
            assert stage_table(content, name) in page, f"{name} of {file.name}"
