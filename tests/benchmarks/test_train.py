"""The training benchmark's parts, without its measuring."""

from dataclasses import replace

import pytest
import torch

from prospect.benchmarks.settings import TrainSuite
from prospect.benchmarks.train import gpu
from prospect.benchmarks.train.gpu import measure_geometry, operations_per_token, render
from prospect.benchmarks.train.peers import columns, train_with_transformers, usual_loss
from prospect.benchmarks.train.suite import Measurement, comparison, histogram, label_everywhere
from prospect.data.settings import LabelSamplingSettings
from prospect.model.adapters import adapt
from prospect.model.losses import label_counts, loss_sums, total_loss
from prospect.model.settings import LoraSettings, LossSettings, ModelSettings
from prospect.training.settings import TrainingSettings
from tests.factories import collator, tea_clip, tiny_model, tiny_vocabulary

VOCABULARY = tiny_vocabulary()


def test_logits_everywhere_give_the_same_losses() -> None:
    model, batch = (
        tiny_model(VOCABULARY).model,
        collator(VOCABULARY, LabelSamplingSettings(), packed=False)([tea_clip()]),
    )
    everywhere = label_everywhere(batch)
    assert len(everywhere.text_positions) == batch.input_ids.numel()
    assert torch.allclose(*(loss_sums(model, each, LossSettings()) for each in (batch, everywhere)), rtol=1e-5)
    assert torch.equal(label_counts(batch, "heads"), label_counts(everywhere, "heads"))


def test_the_peer_sees_the_same_labels() -> None:
    """Its language-model loss is one mean over all labelled tokens; the other losses are ours."""
    model, batch = tiny_model(VOCABULARY).model, collator(VOCABULARY, packed=False)([tea_clip()])
    counts = label_counts(batch, "heads")
    with torch.no_grad():
        terms = loss_sums(model, batch, LossSettings())
        others, _ = total_loss(terms, counts, LossSettings(speaking_text=0, dst_text=0))
        theirs = usual_loss(model, batch, columns(label_everywhere(batch))["labels"])
    assert theirs.item() == pytest.approx(float(terms[:2].sum() / counts[:2].sum() + others), rel=1e-5)


def test_the_peer_trains() -> None:
    settings = ModelSettings(lora=LoraSettings(r=4, dropout=0.0))
    model, clips = adapt(tiny_model(VOCABULARY).model, settings), [tea_clip()] * 4
    training = TrainingSettings(batch_size=2, micro_batch_size=2, learning_rate=1e-3)
    runs = [train_with_transformers(model, clips, collator(VOCABULARY, packed=False), training) for _ in range(2)]
    assert runs[1] < runs[0]


def test_the_peer_s_loss_is_a_mean_over_micro_batches() -> None:
    settings, clips = ModelSettings(lora=LoraSettings(r=4, dropout=0.0)), [tea_clip()] * 4
    at_once, in_parts = (
        train_with_transformers(
            adapt(tiny_model(VOCABULARY).model, settings),
            clips,
            collator(VOCABULARY, packed=False),
            TrainingSettings(batch_size=4, micro_batch_size=size),
        )
        for size in (4, 2)
    )
    assert in_parts == pytest.approx(at_once, rel=1e-4)


def test_ratios_are_against_the_peer() -> None:
    one = Measurement(seconds=10, cpu_seconds=10, tokens=1000, computed=1000, start_bytes=0, peak_bytes=2**30, loss=1)
    table = comparison({"ours": one, "transformers": replace(one, seconds=20, computed=2000, peak_bytes=2**31)})
    assert [list(column.cells) for column in table.columns[1:3]] == [["100", "50"], ["2.00", "1.00"]]
    assert list(table.columns[5].cells) == ["0%", "50%"]
    assert list(table.columns[7].cells) == ["0.50", "1.00"]


def test_the_histogram_counts_every_clip() -> None:
    clips = [replace(tea_clip(), num_tokens=length) for length in (100, 100, 150, 400)]
    assert sum(int(cell) for cell in histogram(clips).columns[1].cells) == 4


def test_the_geometry_runs_on_any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "WARM_UP", 0)
    results = list(measure_geometry(TrainSuite(gpu_tokens=64, gpu_steps=1, vision_dim=8), base="tiny", device="cpu"))
    assert [result.utilisation for result in results] == [None] * 3
    assert render(results).row_count == 3


def test_operations_count_frozen_weights_twice_forward_and_twice_back() -> None:
    model = tiny_model(VOCABULARY).model.requires_grad_(False)
    matrices = [
        p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n
    ]
    attention = 6 * model.config.num_hidden_layers * model.config.hidden_size * 100
    assert operations_per_token(model, 100) == pytest.approx(4 * sum(matrices) + attention)
