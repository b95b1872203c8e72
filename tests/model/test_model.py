"""The model: what it learns from, what trains, and that a saved one is the same one."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prospect.data.batches import IGNORE, sampled_frames
from prospect.data.clips import whole_clip
from prospect.data.lookups import LookupFinder
from prospect.data.settings import LabelSamplingSettings
from prospect.errors import CheckpointError, DataError, UntrainedHeadError
from prospect.model.adapters import add_lora, build_model, build_tokenizer, trainable_parameters, unwrap
from prospect.model.checkpoint import load_model, save_model
from prospect.model.losses import TERMS, label_counts, loss_sums, total_loss, trained_heads
from prospect.model.packing import ATTENTION, Packing
from prospect.model.settings import HEADS, LoraSettings, LossSettings, ModelSettings
from tests.factories import (
    CONTEXT,
    DIM,
    collator,
    features,
    tea_clip,
    tea_clips,
    timeline_of,
    tiny_model,
    tiny_vocabulary,
)

VOCABULARY = tiny_vocabulary()
BACKENDS = ["heads", "token"]


def test_image_tokens_equal_feature_rows_for_every_clip_also_with_an_offset():
    small = CONTEXT.model_copy(update={"max_seq_len": 330})
    clips = tea_clips(VOCABULARY, small, random_start_share=1.0)
    assert any(clip.first_row > 0 for clip in clips)
    for clip in clips:
        batch = collator(VOCABULARY)([clip])
        assert int((batch.input_ids == VOCABULARY.image).sum()) == len(batch.frames)
        whole = torch.from_numpy(features("tea", 0, 60)[:, 0])
        assert torch.equal(batch.frames, whole[clip.first_row : clip.stop])
    together = collator(VOCABULARY)(clips)
    assert int((together.input_ids == VOCABULARY.image).sum()) == len(together.frames)


def test_a_clip_knows_its_number_of_tokens():
    for clip in tea_clips(VOCABULARY, CONTEXT.model_copy(update={"max_seq_len": 330}), random_start_share=1.0):
        assert clip.num_tokens == len(collator(VOCABULARY).sequence(clip).ids)


def test_masks_come_from_lengths_so_that_stop_tokens_are_seen():
    clips = tea_clips(VOCABULARY, CONTEXT.model_copy(update={"max_seq_len": 330}))
    batch = collator(VOCABULARY, packed=False)(clips)
    for row, clip in enumerate(clips):
        length = len(collator(VOCABULARY).sequence(clip).ids)
        assert batch.attention_mask[row].sum() == length
        assert batch.attention_mask[row, :length].all()
        assert (batch.input_ids[row, length:] == VOCABULARY.pad).all()


def test_negatives_keep_a_margin_change_with_the_epoch_and_depend_on_nothing_else():
    clip, settings = tea_clip(), LabelSamplingSettings(negative_rate=0.3, negative_margin=1)
    events = {frame for frame, event in clip.events.items() if event.delta or event.utterance is not None}
    chosen = sampled_frames(clip, settings, epoch=0)
    assert events <= chosen
    assert not {frame + side for frame in events for side in (-1, 1)} & (chosen - events)
    assert chosen == sampled_frames(clip, settings, epoch=0)
    assert chosen != sampled_frames(clip, settings, epoch=1)


def test_the_rate_of_negatives_is_that_of_the_whole_clip_however_short_its_silences_are():
    clip = tea_clip()
    events = {frame for frame, event in clip.events.items() if event.delta or event.utterance is not None}
    counts = {
        rate: len(sampled_frames(clip, LabelSamplingSettings(negative_rate=rate), 0) - events)
        for rate in (0.01, 0.1, 0.2, 1.0)
    }
    assert counts[0.01] == 1
    assert [counts[rate] / counts[1.0] for rate in (0.1, 0.2)] == pytest.approx([0.1, 0.2], abs=0.5 / counts[1.0])


def test_a_watch_only_clip_shows_frames_alone_and_still_teaches_the_state():
    settings = LabelSamplingSettings(watch_only_share=0.99)
    batch = collator(VOCABULARY, settings)([tea_clip()])
    assert not {VOCABULARY.dst, VOCABULARY.asst, VOCABULARY.user} & set(batch.input_ids[0].tolist())
    counts = dict(zip(TERMS, label_counts(batch, "heads").tolist(), strict=True))
    assert counts.pop("state") == 60 * 3
    assert set(counts.values()) == {0}


def test_all_frames_count_in_evaluation():
    batch = collator(VOCABULARY)([tea_clip()])
    assert (batch.speak != IGNORE).all()
    assert (batch.update != IGNORE).all()
    assert len(batch.state_labels) == 60 * 3


def test_logits_in_chunks_give_the_gradients_of_logits_at_once(monkeypatch):
    batch, gradients = collator(VOCABULARY)([tea_clip()]), []
    for logits in (2**25, 7 * 512):
        monkeypatch.setattr("prospect.model.losses.MAX_LOGITS", logits)
        model = tiny_model(VOCABULARY).model
        loss_sums(model, batch, LossSettings()).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5 * gradients[0].abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_focal_loss_cares_less_about_what_is_known(backend):
    """With gamma 0 it is cross-entropy; a larger gamma only makes losses smaller."""
    model, batch = tiny_model(VOCABULARY, backend).model, collator(VOCABULARY)([tea_clip()])
    terms = dict.fromkeys(["balanced", 0.0, 2.0])
    with torch.no_grad():
        terms["balanced"] = loss_sums(model, batch, LossSettings(decision="balanced"))
        for gamma in (0.0, 2.0):
            terms[gamma] = loss_sums(model, batch, LossSettings(decision="focal", focal_gamma=gamma))
    assert torch.allclose(terms[0.0], terms["balanced"], rtol=1e-5)
    decisions = [index for index, name in enumerate(TERMS) if name.startswith(("speak_", "update_"))]
    assert (terms[2.0][decisions] < terms[0.0][decisions]).all()


@pytest.mark.each_backbone
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_packed_batch_gives_losses_and_gradients_of_the_padded_one(backend):
    """No clip sees another: up to 1e-5 of the largest gradient, the order of additions."""
    clips = [*tea_clips(VOCABULARY, CONTEXT.model_copy(update={"max_seq_len": 330})), tea_clip()]
    assert len({len(clip) for clip in clips}) > 1
    sums, gradients = [], []
    for packed in (True, False):
        model = tiny_model(VOCABULARY, backend).model
        batch = collator(VOCABULARY, LabelSamplingSettings(), packed)(clips)
        assert batch.packed == packed
        assert (batch.input_ids.numel() == batch.num_tokens) == packed
        terms = loss_sums(model, batch, LossSettings())
        terms.sum().backward()
        sums.append(terms.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*sums, rtol=1e-5)
    assert (gradients[0] - gradients[1]).abs().max() < 1e-5 * gradients[1].abs().max()


def test_a_packed_clip_is_the_clip_alone_whatever_stands_beside_it():
    """Hidden states up to 1e-5 of those alone; and to the last bit the same beside another clip of that length."""
    model = tiny_model(VOCABULARY).model
    clips = tea_clips(VOCABULARY, CONTEXT.model_copy(update={"max_seq_len": 330}))
    batch = collator(VOCABULARY)(clips)
    packing = Packing.of(batch.lengths, "cpu")

    def hidden(ids: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        return model.trunk(ids, frames, ATTENTION, packing=packing, position_ids=packing.position_ids)[0]

    with torch.inference_mode():
        together = hidden(batch.input_ids, batch.frames).split(batch.lengths)
        for clip, part in zip(clips, together, strict=True):
            lone = collator(VOCABULARY)([clip])
            assert (part - model.trunk(lone.input_ids, lone.frames)[0]).abs().max() < 1e-5
        end = batch.lengths[0]
        first_frames = int((batch.input_ids[0, :end] == VOCABULARY.image).sum())
        ids, frames = batch.input_ids.clone(), batch.frames.clone()
        frames[first_frames:] += 1
        ids[0, end:] = torch.where(ids[0, end:] == VOCABULARY.image, ids[0, end:], 7)
        changed = hidden(ids, frames).split(batch.lengths)
    assert torch.equal(changed[0], together[0])
    assert not torch.allclose(changed[1], together[1], atol=1e-2)


def test_packed_positions_count_anew_in_each_clip():
    packing = Packing.of((3, 1, 2), "cpu")
    assert packing.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert packing.offsets.tolist() == [0, 3, 4, 6]


def test_attention_follows_the_call():
    """A packed forward pass leaves nothing behind for the next, padded one."""
    model, clips = tiny_model(VOCABULARY).model, [tea_clip()]
    first, packed, again = (
        loss_sums(model, collator(VOCABULARY, packed=packed)(clips), LossSettings()) for packed in (False, True, False)
    )
    assert torch.equal(first, again)
    assert torch.allclose(first, packed, rtol=1e-5)


@pytest.mark.each_backbone
def test_a_lookup_is_the_attention_of_one_head_and_reaches_every_layer_below():
    """Its loss: -log of the last layer's attention, as transformers itself computes it for one clip, and of the word.

    `lm_head` reads the word off the one head, which looks at the right place alone.
    """
    collate, model = collator(VOCABULARY), tiny_model(VOCABULARY).model
    collate.finder = LookupFinder(VOCABULARY)
    batch, term = collate([tea_clip()]), TERMS.index("lookup")
    model.set_attn_implementation("eager")
    last, read = model.text.layers[-1], []
    hook = last.self_attn.v_proj.register_forward_hook(lambda module, inputs, values: read.append(values[0]))
    with torch.no_grad():
        attention = model.text(inputs_embeds=model.embed(batch.input_ids, batch.frames), output_attentions=True)
        looked = -attention.attentions[-1][0, 0, batch.lookups, batch.looked_up].log().sum()
        alone = torch.zeros(len(batch.lookups), model.text_config.hidden_size)
        alone[:, : last.self_attn.head_dim] = read[0][batch.looked_up, : last.self_attn.head_dim]
        logits = model.lm_head(model.text.norm(last.self_attn.o_proj(alone)))
        said = torch.nn.functional.cross_entropy(logits, batch.lookup_words, reduction="sum")
    hook.remove()
    expected = looked + said
    gradients = []
    for recompute in (False, True):
        model.checkpoint_layers(recompute)
        model.zero_grad()
        model.train()
        twice = collate([tea_clip(), tea_clip()])
        sums = loss_sums(model, twice, LossSettings())
        assert label_counts(twice, "heads")[term] == 2 * len(batch.lookups) > 0
        assert sums[term].item() == pytest.approx(2 * expected.item(), rel=1e-4)
        sums[term].backward()
        reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert all(any(f"layers.{layer}." in name for name in reached) for layer in range(len(model.text.layers)))
        assert not any("_head" in name for name in reached - {"lm_head.weight"})
    assert torch.allclose(*gradients, atol=1e-6)


def test_lm_head_runs_at_labelled_positions_only():
    model, batch = tiny_model(VOCABULARY).model, collator(VOCABULARY)([tea_clip()])
    rows = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].shape[0]))
    loss_sums(model, batch, LossSettings())
    assert sum(rows) == len(batch.text_positions) < batch.num_tokens


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loss_of_a_split_batch_is_the_loss_of_the_whole(backend):
    """Sums add up over micro-batches, so that ranks and accumulation change nothing. Tolerance 1e-4."""
    model = tiny_model(VOCABULARY, backend).model
    clips = tea_clips(VOCABULARY, CONTEXT.model_copy(update={"max_seq_len": 330}))
    assert len(clips) > 1
    collate, settings = collator(VOCABULARY, LabelSamplingSettings()), LossSettings()
    whole = collate(clips)
    counts = label_counts(whole, backend)
    parts = [collate([clip]) for clip in clips]
    assert torch.equal(counts, sum(label_counts(part, backend) for part in parts))
    expected, _ = total_loss(loss_sums(model, whole, settings), counts, settings)
    split = sum(total_loss(loss_sums(model, part, settings), counts, settings)[0] for part in parts)
    assert torch.allclose(expected, split, atol=1e-4)
    assert trained_heads(counts, settings) == dict.fromkeys(HEADS, True)
    assert not trained_heads(counts, LossSettings(update=0.0))["dst_update"]


def test_text_and_decisions_are_learned_in_any_batch_that_holds_them():
    for summaries in (False, True):
        batch = collator(VOCABULARY, LabelSamplingSettings())(tea_clips(VOCABULARY, CONTEXT, summaries=summaries))
        counts = label_counts(batch, "heads")
        assert [name for name, count in zip(TERMS, counts, strict=True) if not count] == (
            ["lookup"] if summaries else ["summary_text", "lookup"]
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_record_that_lacks_what_was_said_teaches_no_silence(backend):
    """Neither at its frames nor behind the deltas of its labels, which it may have been given."""
    clip = tea_clip()
    asked = [turn for turn in clip.dialogue.turns if turn.role == "user"]
    bare = clip.dialogue.model_copy(update={"turns": tuple(asked), "summary": "The tea stands."})
    batch = collator(VOCABULARY)([whole_clip(bare, timeline_of(bare), CONTEXT)])
    counts = dict(zip(TERMS, label_counts(batch, backend).tolist(), strict=True))
    assert len(batch.after_delta)
    assert (counts["speak_positive"], counts["speak_negative"]) == (0, 0)
    assert counts["dst_text"] * counts["state"] > 0


def test_summaries_are_learned_by_a_loss_of_their_own():
    """The frame that is shown once more has a feature row and no label; nothing else learns from a summary."""
    model, [clip] = tiny_model(VOCABULARY).model, tea_clips(VOCABULARY, CONTEXT, summaries=True)
    batch, without = (collator(VOCABULARY)([each]) for each in (clip, replace(clip, closing_summary=None)))
    assert len(batch.frames) == len(without.frames) + 1
    assert torch.equal(batch.frames[-1], batch.frames[-2])
    assert torch.equal(batch.decisions, without.decisions)
    counts, before = (label_counts(each, "heads") for each in (batch, without))
    more = dict(zip(TERMS, (counts - before).tolist(), strict=True))
    assert more == dict.fromkeys(TERMS, 0.0) | {"summary_text": len(batch.text_targets) - len(without.text_targets)}
    settings = LossSettings(**dict.fromkeys(("speaking_text", "dst_text", "speak", "update", "state"), 0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss, parts = total_loss(loss_sums(model, batch, settings), counts, settings)
        assert loss.equal(parts["summary_text"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_saved_model_gives_identical_logits(backend, tmp_path):
    loaded = tiny_model(VOCABULARY, backend)
    settings = ModelSettings.model_validate(loaded.manifest["model"])
    save_model(loaded.model, VOCABULARY.tokenizer, settings, tmp_path / "model", {"run_name": "x"})
    again = load_model(tmp_path / "model")
    assert again.manifest["run_name"] == "x"
    assert not any(weight.data_ptr() % 64 for weight in again.model.parameters()), "other kernels, other last bits"
    assert_same(loaded.model, again.model, backend)


@pytest.mark.each_backbone
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_adapter_gives_identical_logits_and_trains_only_what_it_should(backend, tied, tmp_path):
    """Tolerance 2e-5: the adapter is merged when it is loaded."""
    base = tmp_path / "base"
    config = LlamaConfig(
        vocab_size=len(VOCABULARY.tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, tie_word_embeddings=tied, eos_token_id=VOCABULARY.stop,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(base)
    VOCABULARY.tokenizer.save_pretrained(base)
    settings = ModelSettings(base=str(base), decision_backend=backend, lora=LoraSettings(r=4, alpha=8, dropout=0.0))
    tokenizer = build_tokenizer(settings, [], tmp_path)
    model = build_model(
        settings, tokenizer, vision_dim=DIM, tokens_per_frame=1, fingerprint="tests", cache=tmp_path, seed=1
    )
    tuned = add_lora(model, settings.lora)
    before = {name: p.detach().clone() for name, p in tuned.named_parameters()}
    trainable = trainable_parameters(tuned)
    batch, losses = collator(VOCABULARY)([tea_clip()]), LossSettings()
    optimizer = torch.optim.SGD(trainable.values(), lr=0.1)
    for _ in range(3):
        sums = loss_sums(unwrap(tuned), batch, losses)
        total_loss(sums, label_counts(batch, backend), losses)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    if not tied:
        assert any("lm_head" in name for name in trainable)
    unused = {"heads": (), "token": ("speaking_decision_head", "dst_update_head")}[backend]
    for name, parameter in tuned.named_parameters():
        expected = name in trainable and not any(head in name for head in unused)
        assert torch.equal(parameter, before[name]) != expected, name
    unwrap(tuned).config.trained_steps = dict.fromkeys(HEADS, 3)
    save_model(tuned, tokenizer, settings, tmp_path / "model")
    assert_same(unwrap(tuned.eval()), load_model(tmp_path / "model", cache=tmp_path).model, backend, atol=2e-5)


def assert_same(one, other, backend, atol=0.0):
    clip = tea_clip()
    ids = torch.tensor([collator(VOCABULARY).sequence(clip).ids])
    frames = torch.from_numpy(features("tea", 0, 60)[:, 0])
    with torch.inference_mode():
        assert torch.allclose(one(ids, frames).logits, other(ids, frames).logits, atol=atol, rtol=0)
        hidden = [model.trunk(ids, frames) for model in (one, other)]
        if backend == "heads":
            pairs = [model.decision_logits(h) for model, h in zip((one, other), hidden, strict=True)]
            assert all(torch.allclose(a, b, atol=atol, rtol=0) for a, b in zip(*pairs, strict=True))
        else:
            rows = [model.decision_rows(h) for model, h in zip((one, other), hidden, strict=True)]
            assert torch.allclose(*rows, atol=atol, rtol=0)
        states = [
            model.dst_state_head(h[0, -1], model.dst_state_head.step_vectors(h[0, :3]))
            for model, h in zip((one, other), hidden, strict=True)
        ]
        assert torch.allclose(*states, atol=atol, rtol=0)


def test_untrained_heads_are_refused_unless_a_benchmark_asks(tmp_path):
    loaded = tiny_model(VOCABULARY, trained=False)
    settings = ModelSettings.model_validate(loaded.manifest["model"])
    save_model(loaded.model, VOCABULARY.tokenizer, settings, tmp_path / "model")
    with pytest.raises(UntrainedHeadError, match="speaking had no training step"):
        load_model(tmp_path / "model")
    assert load_model(tmp_path / "model", allow_untrained=True).model is not None


@pytest.mark.parametrize("broken", ["missing", "config", "weights"])
def test_an_unreadable_checkpoint_is_one_clear_sentence(broken, tmp_path):
    folder = tmp_path / "model"
    if broken != "missing":
        loaded = tiny_model(VOCABULARY)
        save_model(loaded.model, VOCABULARY.tokenizer, ModelSettings.model_validate(loaded.manifest["model"]), folder)
        (folder / {"config": "config.json", "weights": "model.safetensors"}[broken]).write_bytes(b"{ not")
    with pytest.raises(CheckpointError, match=str(folder)) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_frames_are_embedded_alike_by_order_and_by_position():
    model = tiny_model(VOCABULARY).model.eval()
    ids = torch.tensor([20, VOCABULARY.image, 21, VOCABULARY.image])
    frames = torch.from_numpy(features("tea", 0, 2)[:, 0])
    aligned = torch.zeros(4, DIM, dtype=frames.dtype)
    aligned[[1, 3]] = frames
    with torch.inference_mode():
        assert (model.embed(ids, frames) - model.embed(ids, aligned, aligned=True)).abs().max() <= 1e-6


def test_features_that_do_not_fit_are_refused_with_both_numbers():
    model = tiny_model(VOCABULARY).model
    ids = torch.tensor([[VOCABULARY.image] * 3])
    with pytest.raises(DataError, match="2 feature rows for 3 image tokens"):
        model.trunk(ids, torch.zeros(2, DIM))
    with pytest.raises(DataError, match=f"has 7 dimensions, the model was built for {DIM}"):
        model.trunk(ids, torch.zeros(3, 7))
