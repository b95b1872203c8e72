"""The peers' way of training: transformers' Trainer around a peft model, as its documentation shows it."""

from collections.abc import Sequence
from dataclasses import fields
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainingArguments

from prospect.data.batches import IGNORE, Batch, Collator
from prospect.data.clips import Clip
from prospect.model.adapters import unwrap
from prospect.model.interface import DSTModel
from prospect.model.losses import TERMS, decision_sums, label_counts, total_loss
from prospect.model.settings import LossSettings
from prospect.training.settings import TrainingSettings


def train_with_transformers(
    model: DSTModel | PeftModel, clips: Sequence[Clip], collate: Collator, settings: TrainingSettings
) -> float:
    """One pass over `clips` in their order, on the CPU, in batches of `settings.batch_size`; returns the mean loss."""
    with TemporaryDirectory() as folder:
        trainer = _Trainer(
            model,
            _arguments(settings, folder),
            data_collator=lambda chosen: columns(collate(chosen)),
            train_dataset=clips,
        )
        trainer.model_accepts_loss_kwargs = False  # else micro-batches' means are added up and not averaged
        trainer.remove_callback(PrinterCallback)
        return trainer.train().training_loss


def _arguments(settings: TrainingSettings, folder: str) -> TrainingArguments:
    """The Trainer creates `folder` and saves nothing there."""
    return TrainingArguments(
        output_dir=folder,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.batch_size // settings.micro_batch_size,
        num_train_epochs=1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        use_cpu=True,
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def columns(batch: Batch) -> dict[str, Any]:
    """A padded batch with labels for every token, as transformers expects it."""
    labels = torch.full(batch.input_ids.shape, IGNORE)
    # Transformers shifts labels itself: a token's label stands at the token.
    counts = batch.text_targets != IGNORE
    labels.view(-1)[batch.text_positions[counts] + 1] = batch.text_targets[counts]
    return {"batch": vars(batch), "labels": labels}


def usual_loss(model: DSTModel, batch: Batch, labels: Tensor) -> Tensor:
    """Transformers' own language-model loss over the whole vocabulary at every position, and the other losses."""
    hidden = model.trunk(batch.input_ids, batch.frames, attention_mask=batch.attention_mask)
    text = model.loss_function(model.lm_head(hidden), labels, model.config.vocab_size)
    settings = LossSettings()
    texts = [text.new_zeros(())] * sum(name.endswith("_text") for name in TERMS)
    sums = [*texts, *decision_sums(model, hidden.flatten(0, 1), batch, settings), text.new_zeros(())]
    others, _ = total_loss(torch.stack(sums), label_counts(batch, model.config.decision_backend), settings)
    return text + others


class _Trainer(Trainer):
    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        batch = Batch(**{field.name: inputs["batch"][field.name] for field in fields(Batch)})
        return usual_loss(unwrap(model), batch, inputs["labels"])
