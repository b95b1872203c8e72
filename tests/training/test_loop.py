"""One step and a run of steps on the plain backend."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import pytest
import torch

from prospect.data.clips import Clip
from prospect.data.lookups import LookupFinder
from prospect.data.settings import LabelSamplingSettings
from prospect.errors import ConfigError
from prospect.model.losses import TERMS
from prospect.model.settings import LossSettings
from prospect.training.backend import PlainBackend, TrainingBackend
from prospect.training.loop import Collate, MicroBatch, StepBatch, StepResult, lr_at, step_batches, train_step
from prospect.training.settings import ReadingSettings, TrainingError, TrainingSettings
from prospect.training.validation import validate
from tests.factories import TOY_CONTEXT, ToyCorpus, clips_of, features

SETTINGS = TrainingSettings(batch_size=4, micro_batch_size=4, epochs=2, learning_rate=3e-3, warmup_steps=2)


class GradientBackend(PlainBackend):
    """Keeps the gradients instead of updating."""

    def step(self, learning_rate: float) -> float:
        return 1.0

    def gradients(self) -> torch.Tensor:
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])


def train_steps(
    backend: TrainingBackend, clips: Sequence[Clip], collate: Collate, settings: TrainingSettings, start: int = 0
) -> Iterator[StepResult]:
    batches = step_batches(backend, clips, collate, settings, start=start)
    return (train_step(backend, batch, settings) for batch in batches)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("decisions", ["heads", "token"])
def test_accumulated_gradients_are_those_of_one_batch(toys: ToyCorpus, decisions: str, packed: bool) -> None:
    """Eight clips at once, unevenly, four by four, two by two and alone, packed or padded: up to 1e-5 of the largest.

    The order of additions differs, nothing else.
    """
    collate, results = toys.collator(LabelSamplingSettings()), []
    collate.packed = packed
    for sizes in ((8,), (1, 7), (4, 4), (2,) * 4, (1,) * 8):
        backend, ends = GradientBackend(toys.model(decision_backend=decisions), SETTINGS), np.cumsum(sizes)
        batches = [MicroBatch(collate(toys.clips[end - size : end])) for size, end in zip(sizes, ends, strict=True)]
        results.append((train_step(backend, StepBatch(batches, 1e-3), SETTINGS), backend.gradients()))
    (whole, gradients), *others = results
    for step, other in others:
        assert step.loss == pytest.approx(whole.loss, rel=1e-5)
        assert step.parts == pytest.approx(whole.parts, rel=1e-5)
        assert (step.clips, step.tokens) == (whole.clips, whole.tokens)
        assert (other - gradients).abs().max() < 1e-5 * gradients.abs().max()


def test_gradients_are_clipped_to_their_global_norm(toys: ToyCorpus) -> None:
    """A step of plain AdamW shows no clipping, because it divides by the gradient's size: the moments do."""
    batch = MicroBatch(toys.collator()(toys.clips[:4]))
    settings = SETTINGS.model_copy(update={"max_grad_norm": 0.1})
    backend = PlainBackend(toys.model(), settings)
    result = train_step(backend, StepBatch([batch], 1e-3), settings)
    moments = torch.cat([backend.get_tensor("exp_avg", name).flatten() for name in backend.shapes()])
    assert result.grad_norm > 1
    assert moments.norm() / (1 - 0.9) == pytest.approx(0.1, rel=1e-3)


def test_activation_checkpointing_changes_memory_and_nothing_else(toys: ToyCorpus) -> None:
    """Gradients up to 1e-6 of the largest component."""
    batch = MicroBatch(toys.collator()(toys.clips[:4]))
    gradients = []
    for on in (False, True):
        settings = SETTINGS.model_copy(update={"activation_checkpointing": on})
        backend = GradientBackend(toys.model(), settings)
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: (kept.append(t.nbytes), t)[1], lambda t: t):
            train_step(backend, StepBatch([batch], 1e-3), settings)
        gradients.append((backend.gradients(), sum(kept)))
    assert (gradients[1][0] - gradients[0][0]).abs().max() <= 1e-6 * gradients[0][0].abs().max()
    assert gradients[1][1] < 0.6 * gradients[0][1]


def test_a_token_budget_gives_the_loss_curve_of_a_clip_budget(toys: ToyCorpus) -> None:
    """Up to 1e-4: two epochs of updates, summed in another order."""
    by_tokens = SETTINGS.model_copy(update={"micro_batch_tokens": max(clip.num_tokens or 0 for clip in toys.clips)})
    curves = [
        [
            r.loss
            for r in train_steps(PlainBackend(toys.model(), s), toys.clips, toys.collator(LabelSamplingSettings()), s)
        ]
        for s in (SETTINGS, by_tokens)
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_a_clip_that_exceeds_the_token_budget_is_named(toys: ToyCorpus) -> None:
    settings = SETTINGS.model_copy(update={"micro_batch_tokens": 64})
    with pytest.raises(
        ConfigError, match=r"`training.micro_batch_tokens` is 64, but clip toy/v\d/v\d#0@0-\d+ has \d+ tokens"
    ):
        list(train_steps(PlainBackend(toys.model(), settings), toys.clips, toys.collator(), settings))


def test_each_loss_comes_with_its_number_of_labels(toys: ToyCorpus) -> None:
    [result, *_] = train_steps(PlainBackend(toys.model(), SETTINGS), toys.clips, toys.collator(), SETTINGS)
    assert result.labels.keys() == set(TERMS) - {"summary_text", "lookup"}  # nobody asks for them
    assert result.labels["speak_positive"] == 4 * 2
    assert all(result.labels.values())


def test_a_micro_batch_that_does_not_count_changes_nothing(toys: ToyCorpus) -> None:
    collate = toys.collator()
    results = []
    for filler in ([], [MicroBatch(collate(toys.clips[4:5]), counts=False)]):
        backend = GradientBackend(toys.model(), SETTINGS)
        batch = StepBatch([MicroBatch(collate(toys.clips[:2])), *filler], 1e-3)
        result = train_step(backend, batch, SETTINGS)
        results.append((result, backend.gradients()))
    assert results[0][0] == results[1][0]
    assert torch.allclose(results[0][1], results[1][1], rtol=0, atol=1e-7)


@pytest.mark.each_backbone
def test_the_loss_falls_and_heads_count_as_trained(toys: ToyCorpus) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 40, "learning_rate": 1e-2})
    backend, collate = PlainBackend(toys.model(), settings), toys.collator(LabelSamplingSettings())
    before = validate(backend, toys.clips, toys.collator(), settings).losses
    results = list(train_steps(backend, toys.clips, collate, settings))
    after = validate(backend, toys.clips, toys.collator(), settings).losses
    assert [result.step for result in results] == list(range(80))
    assert {result.epoch for result in results} == set(range(40))
    assert results[-1].loss < 0.5 * results[0].loss
    assert after["loss"] < 0.5 * before["loss"]
    assert results[-1].trained == {"speaking": True, "dst_update": True, "dst_state": True}
    assert set(results[-1].parts) == {"speaking_text", "dst_text", "speak", "update", "state"}


def test_a_run_that_starts_in_the_middle_continues_the_uninterrupted_one(toys: ToyCorpus) -> None:
    collate = toys.collator(LabelSamplingSettings())
    whole = [result.loss for result in train_steps(PlainBackend(toys.model(), SETTINGS), toys.clips, collate, SETTINGS)]
    backend = PlainBackend(toys.model(), SETTINGS)
    first = [result.loss for result in islice(train_steps(backend, toys.clips, collate, SETTINGS), 2)]
    rest = [result.loss for result in train_steps(backend, toys.clips, collate, SETTINGS, start=2)]
    assert first + rest == pytest.approx(whole, rel=1e-6)


def test_the_last_steps_read(toys: ToyCorpus) -> None:
    """Interrupted before them or among them, a run goes on with the same losses."""
    reading = ReadingSettings(share=0.5, lookup=2.0, speaking_text=1.0, watch_only_share=0.0)
    settings = SETTINGS.model_copy(update={"max_steps": 4, "reading": reading})
    collators = toys.collator(LabelSamplingSettings(watch_only_share=0.9)), toys.collator(LabelSamplingSettings())
    collators[1].finder = LookupFinder(toys.vocabulary)

    def steps(backend: TrainingBackend, start: int = 0) -> Iterator[StepResult]:
        watch, read = collators
        batches = step_batches(backend, toys.clips, watch, settings, start=start, collate_reading=read)
        return (train_step(backend, batch, settings.at(batch.step, 4)) for batch in batches)

    whole = list(steps(PlainBackend(toys.model(), settings)))
    assert ["lookup" in result.parts for result in whole] == [False, False, True, True]
    assert whole[2].labels["speaking_text"] > whole[1].labels.get("speaking_text", 0)
    for stopped in (1, 3):
        backend = PlainBackend(toys.model(), settings)
        losses = [result.loss for result in [*islice(steps(backend), stopped), *steps(backend, stopped)]]
        assert losses == pytest.approx([result.loss for result in whole], rel=1e-6)


def test_the_settings_of_a_step_are_those_of_its_part_of_the_run() -> None:
    settings = TrainingSettings(reading=ReadingSettings(share=0.7, lookup=2.0, speaking_text=5.0))
    assert settings.at(224, 750) is settings
    assert settings.at(225, 750).losses == LossSettings(lookup=2.0, speaking_text=5.0)
    assert settings.at(225, 750).sampling.watch_only_share == settings.reading.watch_only_share
    assert settings.at(225, 750).sampling.negative_rate == settings.sampling.negative_rate
    assert TrainingSettings().at(749, 750) == TrainingSettings()


def test_data_without_steps_trains_speaking_only(toys: ToyCorpus) -> None:
    talk = [dialogue.model_copy(update={"steps": ()}) for dialogue in toys.dialogues[:4]]
    clips = [clip for d in talk for clip in clips_of(d, toys.vocabulary, TOY_CONTEXT)]
    [result, *_] = train_steps(PlainBackend(toys.model(), SETTINGS), clips, toys.collator(), SETTINGS)
    assert result.trained == {"speaking": True, "dst_update": False, "dst_state": False}
    assert set(result.parts) == {"speaking_text", "speak"}


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_clip(toys: ToyCorpus) -> None:
    def broken(video_id: str, start: int, stop: int) -> np.ndarray:
        return features(video_id, start, stop) * (np.float16("nan") if video_id == "v2" else 1)

    settings = SETTINGS.model_copy(update={"micro_batch_size": 1})
    backend = PlainBackend(toys.model(), settings)
    with pytest.raises(TrainingError, match=r"loss is nan at step \d on toy/v2/v2#0@0-20;"):
        list(train_steps(backend, toys.clips, toys.collator(read=broken), settings))
    assert all(parameter.isfinite().all() for parameter in backend.model.parameters())


def test_no_clip_is_one_sentence(toys: ToyCorpus) -> None:
    with pytest.raises(TrainingError, match="the split `train` has no clips"):
        list(train_steps(PlainBackend(toys.model(), SETTINGS), [], toys.collator(), SETTINGS))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rate(schedule: str) -> None:
    settings = TrainingSettings(learning_rate=1.0, warmup_steps=4, schedule=schedule)
    rates = [lr_at(step, settings, 20) for step in range(21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert all(rate > 0 for rate in rates[:20])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert math.isclose(rates[20], 1.0 if schedule == "constant" else 0.0)
    assert math.isclose(rates[12], {"cosine": 0.5, "linear": 0.5, "constant": 1.0}[schedule])
