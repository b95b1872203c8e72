"""The memory plan against what training really takes."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from prospect.cluster.plan import plan, show_plan
from prospect.config.load import load
from prospect.config.schema import Config
from prospect.errors import ConfigError
from prospect.model.settings import ModelSettings
from prospect.training.checks import GIB
from prospect.training.memory_plan import MemoryPlan, largest_micro_batch, plan_zero
from prospect.training.settings import TrainingSettings

LLAMA = ModelSettings(base="meta-llama/Llama-3.2-3B-Instruct", dtype="bfloat16")
CLIPS = (2048, 2048)
LONG = pytest.mark.long


@cache
def zero(way: str = "lora", **training: object) -> MemoryPlan:
    return plan_zero(LLAMA.model_copy(update={"adaptation": way}), TrainingSettings.model_validate(training), CLIPS)


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("ways", "cases"), [("first", 2), pytest.param("plain", 4, marks=LONG), pytest.param("zero", 3, marks=LONG)]
)
def test_the_plan_is_what_small_models_take(ways: str, cases: int) -> None:
    """Resident memory over what was there before is 0.85 to 1.25 of the plan, with an allocator that keeps nothing."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.peak", ways], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == cases
    for case in found:
        assert 0.85 <= case["measured"] / case["planned"] <= 1.25, case


def test_a_3b_lora_at_4096_tokens_fits_24_gb_with_checkpointing_alone() -> None:
    assert zero(activation_checkpointing=True).fits("24GB")
    assert not zero().fits("24GB")
    assert zero().fits("80GB")


def test_4_bits_save_weights_and_nothing_else() -> None:
    lora, qlora = zero(activation_checkpointing=True), zero("qlora", activation_checkpointing=True)
    assert qlora.weights < 0.5 * lora.weights
    assert (qlora.optimizer, qlora.activations, qlora.trainable) == (lora.optimizer, lora.activations, lora.trainable)


def test_each_stage_of_zero_parts_one_thing_more() -> None:
    one, two, three = (zero("full", activation_checkpointing=True, num_workers=8, zero_stage=s) for s in (1, 2, 3))
    alone = zero("full", activation_checkpointing=True, num_workers=1)
    assert one.optimizer == pytest.approx(alone.optimizer / 8, rel=1e-6)
    assert two.gradients < one.gradients
    assert three.weights == pytest.approx(two.weights / 8, rel=1e-6)
    assert three.peak < two.peak < one.peak < alone.peak
    offloaded = zero("full", activation_checkpointing=True, offload_optimizer=True)
    whole = alone.master + alone.optimizer + alone.gradients
    assert offloaded.optimizer == offloaded.master == offloaded.update == 0
    assert offloaded.gradients + offloaded.host == whole, "the sums of the gradients go to the machine's memory too"


def test_known_numbers_of_llama_3_2_3b() -> None:
    """3.2 B parameters in the base; rank 128 on seven projections adds 194 M (both as published)."""
    planned = zero()
    assert planned.frozen == pytest.approx(3.213e9, rel=2e-3)
    assert planned.trainable == pytest.approx(194.5e6 + 3072 * (1152 + 3072), rel=0.02)
    assert planned.weights == pytest.approx(2 * (planned.frozen + planned.trainable), rel=1e-3)


def test_a_job_is_planned_from_its_configuration() -> None:
    config = Config(model=LLAMA, training=TrainingSettings(micro_batch_tokens=4096, activation_checkpointing=True))
    planned = plan(config)
    assert planned.tokens == 4096
    assert planned.table(("24GB",)).row_count == 8, "one worker gathers nothing"
    assert plan(config, [700, 900, 300, 300], 64).tokens == 2200
    bigger = plan(config.model_copy(update={"training": TrainingSettings(micro_batch_size=4)}))
    assert bigger.tokens == 4 * config.context.max_seq_len


def test_cards_are_sizes() -> None:
    small = MemoryPlan(int(22 * GIB), 0, 0, 0, 0, 0, 0, 0, 1, 1, 1)
    assert [small.fits(card) for card in ("24GB", "24 GiB", "24", 24, "80GB", 20.0)] == [
        True,
        True,
        True,
        True,
        True,
        False,
    ]
    for wrong in ("H100", "0GB", "-1", "nan", ""):
        with pytest.raises(ConfigError, match=f"`card` .{wrong}. must be a size, for example card=24GB"):
            small.fits(wrong)


def test_a_micro_batch_is_planned_for_the_longest_clips_that_meet() -> None:
    lengths = [100, 400, 300, 200]
    assert largest_micro_batch(lengths, TrainingSettings(micro_batch_size=2)) == (400, 300)
    assert largest_micro_batch(lengths, TrainingSettings(micro_batch_size=9, batch_size=3)) == (400, 300, 200)
    assert largest_micro_batch(lengths, TrainingSettings(micro_batch_tokens=750)) == (400, 300, 50)
    assert largest_micro_batch(lengths, TrainingSettings(micro_batch_tokens=4000)) == (400, 300, 200, 100)


@pytest.mark.parametrize("changes", [["training=single_24gb"], ["training=zero3", "model.adaptation=full"]])
def test_a_configuration_for_a_gpu_fits_24_gb_with_the_model_that_it_names(changes: list[str]) -> None:
    config = load("train", ["model=llama_3_2_3b", "vision=siglip_so400m", *changes])
    assert plan(config).fits("24GB")
    assert config.training.activation_checkpointing


@pytest.mark.parametrize("training", ["single_24gb", "zero2_offload", "zero3"])
def test_a_training_is_planned_without_data_or_weights(
    training: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_plan(load("train", [f"storage.root={tmp_path}", f"training={training}", "plan=true", "card=24"]))
    shown = capsys.readouterr().out
    for words in ("state head", "trainable", "weights", "activations", "peak", "fits 80GB", "a card of 24: "):
        assert words in shown
    assert not list(tmp_path.iterdir())
