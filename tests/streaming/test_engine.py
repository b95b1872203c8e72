"""The engine: exact with the cache, exact in a batch, exact after a refresh, a restart and a recording."""

import dataclasses
import itertools
import json

import pytest
import torch

from prospect.data.clips import clip_sequence, make_clip
from prospect.dialogue.sequence import SequenceBuilder
from prospect.dialogue.state import TaskState
from prospect.dialogue.timeline import num_frames, place
from prospect.errors import SessionError
from prospect.model.losses import label_counts, loss_sums, total_loss
from prospect.model.settings import LossSettings
from prospect.streaming.engine import StreamingEngine
from prospect.streaming.settings import StreamingSettings
from prospect.streaming.types import Decision, Refreshed, SessionSpec, TextPiece
from tests.factories import (
    CONTEXT,
    SETTINGS,
    TALKATIVE,
    TEA,
    collator,
    decisions,
    features,
    run,
    stream,
    tea_clip,
    tiny_model,
)


@pytest.fixture(scope="module", params=["heads", "token"])
def overfitted(request, vocabulary):
    """Trained on one clip until its loss is next to nothing."""
    loaded = tiny_model(vocabulary, request.param)
    batch = collator(vocabulary)([tea_clip()])
    counts = label_counts(batch, request.param)
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=3e-3)
    for _ in range(150):
        loss, _parts = total_loss(loss_sums(loaded.model.train(), batch, LossSettings()), counts, LossSettings())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(loaded.model.parameters(), 1.0)
        optimizer.step()
    assert loss.item() < 0.05
    loaded.model.eval()
    return loaded


def user_texts() -> dict[int, str]:
    return {frame: events.user[0] for frame, events in tea_clip().events.items() if events.user}


@pytest.mark.parametrize("dst_decoder", ["generate", "readout"])
def test_an_overfitted_clip_is_reproduced_in_streaming(overfitted, dst_decoder):
    engine = StreamingEngine(overfitted, CONTEXT, SETTINGS.model_copy(update={"dst_decoder": dst_decoder}))
    clip = tea_clip()
    engine.open("a", TEA)
    stream(engine, "a", "tea", range(60), user_texts())
    decided = decisions(run(engine)["a"])
    assert [d.frame for d in decided] == list(range(60))
    assert {d.frame: d.utterance for d in decided if d.utterance} == {
        f: e.utterance for f, e in clip.events.items() if e.utterance
    }
    assert [d.state for d in decided] == list(clip.states)
    assert [d.readout for d in decided] == list(clip.states)


def test_streaming_with_the_cache_gives_the_logits_of_one_full_forward(overfitted, vocabulary):
    """Tolerance 1e-4 in float32: chunked and full attention add up in different orders."""
    engine = StreamingEngine(overfitted, CONTEXT, SETTINGS)
    engine.open("a", TEA)
    stream(engine, "a", "tea", range(60), user_texts())
    decided = decisions(run(engine)["a"])
    sequence = engine.segment("a").sequence(SequenceBuilder(vocabulary, CONTEXT, 1))
    with torch.inference_mode():
        hidden = overfitted.model.trunk(torch.tensor([sequence.ids]), torch.from_numpy(features("tea", 0, 60)[:, 0]))[0]
        if overfitted.model.config.decision_backend == "heads":
            speak, update = overfitted.model.decision_logits(hidden[sequence.decision_positions])
            assert torch.allclose(torch.sigmoid(speak), torch.tensor([d.p_speak for d in decided]), atol=1e-4)
            assert torch.allclose(torch.sigmoid(update), torch.tensor([d.p_update for d in decided]), atol=1e-4)
        else:
            rows = torch.softmax(overfitted.model.decision_rows(hidden[sequence.decision_positions]), -1)
            assert torch.allclose(rows[:, 1], torch.tensor([d.p_update for d in decided]), atol=1e-4)


def test_a_recorded_session_converts_to_the_tokens_that_the_engine_saw(overfitted, vocabulary):
    engine = StreamingEngine(overfitted, CONTEXT, SETTINGS)
    engine.open("a", TEA)
    stream(engine, "a", "tea", range(60), user_texts())
    run(engine)
    record = engine.record("a")
    timeline = place(record, num_frames(record.duration))
    clip = make_clip(record, timeline, 0, 60, CONTEXT, "strict")
    assert not timeline.quarantined
    builder = SequenceBuilder(vocabulary, CONTEXT, 1)
    assert clip_sequence(clip, builder).ids == engine.segment("a").sequence(builder).ids
    assert engine._session("a").cache.length == len(clip_sequence(clip, SequenceBuilder(vocabulary, CONTEXT, 1)).ids)


def test_a_batch_of_sessions_gives_each_what_it_gets_alone(random_model):
    """Tolerance 1e-5 on probabilities; what is said and done is equal."""
    together = StreamingEngine(random_model, CONTEXT, TALKATIVE)
    alone = {}
    for name, count in (("a", 25), ("b", 40), ("c", 7)):
        engine = StreamingEngine(random_model, CONTEXT, TALKATIVE)
        for target in (engine, together):
            target.open(name, TEA if name != "c" else SessionSpec(goal="Wash up"))
            stream(target, name, name, range(count), {3: "What now?"})
        alone[name] = run(engine)[name]
    batched = run(together)
    for name, expected in alone.items():
        assert len(decisions(expected)) == len(decisions(batched[name]))
        for one, other in zip(decisions(expected), decisions(batched[name]), strict=True):
            assert (one.frame, one.utterance, one.delta, one.state) == (
                other.frame, other.utterance, other.delta, other.state,
            )  # fmt: skip
            assert abs(one.p_speak - other.p_speak) < 1e-5
            assert abs(one.p_update - other.p_update) < 1e-5


@pytest.mark.parametrize("strategy", ["state_refresh", "drop_all"])
def test_a_refresh_keeps_the_state_and_decides_every_frame_once(overfitted, vocabulary, strategy):
    small = CONTEXT.model_copy(update={"max_seq_len": 330, "strategy": strategy, "tail_seconds": 3.0})
    engine = StreamingEngine(overfitted, small, SETTINGS)
    engine.open("a", TEA)
    stream(engine, "a", "tea", range(60), user_texts())
    events = run(engine)["a"]
    refreshes = [event for event in events if isinstance(event, Refreshed)]
    decided = decisions(events)
    assert len(refreshes) >= 1
    assert [d.frame for d in decided] == list(range(60))
    states = [d.state for d in decided]
    assert all(all(a <= b for a, b in zip(x.steps, y.steps, strict=True)) for x, y in itertools.pairwise(states))
    for refresh in refreshes:
        assert refresh.tokens_after < refresh.tokens_before <= small.max_seq_len
    if strategy == "state_refresh":
        record = engine.record("a")
        last = refreshes[-1].frame
        clip = make_clip(record, place(record, 60), last, 60, small, "strict")
        builder = SequenceBuilder(vocabulary, small, 1)
        assert clip_sequence(clip, builder).ids == engine.segment("a").sequence(builder).ids


def test_a_session_continues_from_its_log_on_another_engine(overfitted):
    first, second = (StreamingEngine(overfitted, CONTEXT, SETTINGS) for _ in range(2))
    for engine in (first,):
        engine.open("a", TEA)
        stream(engine, "a", "tea", range(30), user_texts())
        run(engine)
    second.import_(json.loads(json.dumps(first.export("a"))))
    for engine in (first, second):
        stream(engine, "a", "tea", range(30, 60), user_texts())
    expected, restored = decisions(run(first)["a"]), decisions(run(second)["a"])
    assert [d.frame for d in restored] == list(range(30, 60))
    for one, other in zip(expected, restored, strict=True):
        assert (one.utterance, one.delta, one.state) == (other.utterance, other.delta, other.state)
        assert abs(one.p_speak - other.p_speak) < 1e-4
    assert first.record("a") == second.record("a")


@pytest.mark.each_backbone
def test_generation_ends_at_each_stop_id_and_leaves_the_canonical_one(vocabulary):
    for stop in sorted({vocabulary.stop, vocabulary.tokenizer.bos_token_id}):
        loaded = tiny_model(vocabulary)
        loaded.vocabulary.stop_ids = frozenset({vocabulary.stop, stop})
        word = vocabulary.encode("Which")[0]
        force = {vocabulary.asst: word, word: stop}
        loaded.model.lm_head = _Scripted(loaded.model.text.embed_tokens.weight, force)
        engine = StreamingEngine(loaded, CONTEXT, StreamingSettings(speak_threshold=0.0, update_threshold=1.0))
        engine.open("a", SessionSpec(goal="Wash up"))
        stream(engine, "a", "a", range(1))
        (decision,) = decisions(run(engine)["a"])
        assert decision.utterance == vocabulary.decode([word]).strip()
        assert engine.segment("a").sequence(SequenceBuilder(vocabulary, CONTEXT, 1)).ids[-1] == vocabulary.stop
        loaded.vocabulary.stop_ids = frozenset({vocabulary.stop})


class _Scripted(torch.nn.Module):
    """Instead of `lm_head`: says one word, then stops, whatever the hidden state."""

    def __init__(self, weight: torch.Tensor, force: dict[int, int]) -> None:
        super().__init__()
        self.vocab, self.script, self.calls = len(weight), list(force.values()), 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(hidden), self.vocab)
        logits[:, self.script[self.calls % len(self.script)]] = 10.0
        self.calls += 1
        return logits


def test_an_utterance_arrives_in_pieces_that_add_up(overfitted):
    engine = StreamingEngine(overfitted, CONTEXT, SETTINGS)
    engine.open("a", TEA)
    stream(engine, "a", "tea", range(4), user_texts())
    events = run(engine)["a"]
    said = "".join(event.text for event in events if isinstance(event, TextPiece) and event.frame == 2)
    assert said == next(d.utterance for d in decisions(events) if d.frame == 2)


class _Counted(torch.nn.Module):
    """Counts the rows that `lm_head` multiplies, whoever asks."""

    def __init__(self, lm_head: torch.nn.Linear) -> None:
        super().__init__()
        self.lm_head, self.weight, self.rows = lm_head, lm_head.weight, 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.rows += len(hidden)
        return self.lm_head(hidden)


@pytest.mark.parametrize("backend", ["heads", "token"])
def test_a_silent_frame_never_touches_lm_head(vocabulary, backend):
    """The token back-end reads three of its rows and never asks for the others."""
    loaded = tiny_model(vocabulary, backend)
    loaded.model.lm_head = counted = _Counted(loaded.model.lm_head)
    engine = StreamingEngine(loaded, CONTEXT, StreamingSettings(speak_threshold=1.0, update_threshold=1.0))
    engine.open("a", TEA)
    stream(engine, "a", "a", range(10))
    assert all(d.fast for d in decisions(run(engine)["a"]))
    stats = engine.stats()
    assert (counted.rows, stats.lm_head_rows, stats.fast_share) == (0, 0, 1.0)


def test_a_delta_that_is_read_off_asks_lm_head_for_nothing(vocabulary):
    loaded = tiny_model(vocabulary)
    loaded.model.lm_head = counted = _Counted(loaded.model.lm_head)
    settings = StreamingSettings(speak_threshold=1.0, update_threshold=0.0, dst_decoder="readout")
    engine = StreamingEngine(loaded, CONTEXT, settings)
    engine.open("a", TEA)
    stream(engine, "a", "a", range(10))
    decided = decisions(run(engine)["a"])
    assert any(d.delta for d in decided)
    assert all(d.fast for d in decided)
    assert counted.rows == 0


@pytest.mark.each_backbone
def test_a_frame_at_which_something_is_said_is_not_a_fast_one(random_model):
    engine = StreamingEngine(random_model, CONTEXT, TALKATIVE.model_copy(update={"update_threshold": 1.0}))
    engine.open("a", SessionSpec(goal="Wash up"))
    stream(engine, "a", "tea", range(40))
    decided = decisions(run(engine)["a"])
    spoken = sum(d.p_speak >= TALKATIVE.speak_threshold for d in decided)
    assert 0 < spoken < 40
    assert engine.stats().fast_share == pytest.approx(1 - spoken / 40)


def test_a_patched_state_reaches_the_model_before_the_next_frame(random_model):
    engine = StreamingEngine(random_model, CONTEXT, StreamingSettings(speak_threshold=1.0, update_threshold=1.0))
    engine.open("a", TEA)
    stream(engine, "a", "a", range(3))
    run(engine)
    assert engine.patch_state("a", {"S1": "completed"}).labels[0] == "completed"
    stream(engine, "a", "a", range(3, 4))
    events = run(engine)["a"]
    assert isinstance(events[0], Refreshed)
    assert "S1 (completed) boil water" in engine.segment("a").context.text


def test_a_state_that_is_patched_while_a_delta_is_written_stays(random_model):
    settings = StreamingSettings(speak_threshold=1.0, update_threshold=0.0)
    for steps in range(2, 9):
        engine = StreamingEngine(random_model, CONTEXT, settings)
        engine.open("a", TEA)
        stream(engine, "a", "a", range(1))
        events = [event for _ in range(steps) for _, event in engine.step()]
        engine.patch_state("a", dict.fromkeys(("S1", "S2", "S3"), "completed"))
        (decision,) = decisions(events + run(engine).get("a", []))
        assert engine.state("a").labels == ("completed",) * 3
        assert decision.delta == () or decision.state.labels != engine.state("a").labels


def test_a_sessions_thresholds_come_before_its_datasets_those_before_the_default_and_the_configured_last(vocabulary):
    loaded = tiny_model(vocabulary)
    loaded.model.config.thresholds = {"default": {"speak": 0.9, "update": 0.8}, "ego4d": {"speak": 0.7}}
    settings = StreamingSettings(speak_threshold=0.2, update_threshold=0.3)
    sessions = {
        "stranger": (SessionSpec(dataset="wtag"), (0.9, 0.8)),
        "ego4d": (SessionSpec(dataset="ego4d"), (0.7, 0.8)),
        "own": (SessionSpec(dataset="ego4d", speak_threshold=0.0), (0.0, 0.8)),
    }

    def thresholds(engine: StreamingEngine, spec: SessionSpec) -> tuple[float, float]:
        engine.open("a", spec)
        policy = engine._session("a").policy
        engine.close("a")
        return policy.speak, policy.update

    for name, (spec, expected) in sessions.items():
        assert thresholds(StreamingEngine(loaded, CONTEXT, settings), spec) == expected, name
    uncalibrated = StreamingEngine(loaded, CONTEXT, settings.model_copy(update={"calibrated": False}))
    assert thresholds(uncalibrated, SessionSpec(dataset="ego4d")) == (0.2, 0.3)
    loaded.model.config.thresholds = None
    assert thresholds(StreamingEngine(loaded, CONTEXT, settings), SessionSpec()) == (0.2, 0.3)


def test_an_update_that_changes_nothing_holds_up_no_waiting_frame(vocabulary):
    loaded = tiny_model(vocabulary)
    settings = StreamingSettings(speak_threshold=1.0, update_threshold=0.0, dst_decoder="readout", catch_up_frames=8)
    engine = StreamingEngine(loaded, CONTEXT, settings)
    engine.open("a", dataclasses.replace(TEA, state=TaskState.from_labels(["completed"] * len(TEA.steps))))
    run(engine)
    stream(engine, "a", "a", range(8))
    decided = [event for _, event in engine.step() if isinstance(event, Decision)]
    assert [(d.p_update > 0, d.delta) for d in decided] == [(True, ())] * 8, "in one chunk"


def test_frames_pushed_while_another_is_being_decided_keep_counting(random_model):
    engine = StreamingEngine(random_model, CONTEXT, StreamingSettings(speak_threshold=0.0, update_threshold=1.0))
    engine.open("a", TEA)
    indices = []
    for frame in range(6):
        indices.append(engine.push_frame("a", features("a", frame, frame + 1)[0]))
        engine.step()
    assert indices == list(range(6))
    assert engine.waiting("a") == 6 - engine.counters("a").frames
    run(engine)
    assert engine.waiting("a") == 0


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_generated_stays_within_a_frames_reserve(vocabulary, seed):
    """Half characters take more tokens as text than they took when they were generated."""
    context = CONTEXT.model_copy(update={"max_seq_len": 400, "max_utterance_tokens": 60})
    always = StreamingSettings(speak_threshold=0.0, update_threshold=0.0, cooldown_frames=0, speak_hysteresis=None)
    engine = StreamingEngine(tiny_model(vocabulary, seed=seed), context, always)
    engine.open("a", TEA)
    stream(engine, "a", "a", range(12))
    heard = decisions(run(engine)["a"])
    assert [decision.frame for decision in heard] == list(range(12))
    assert all(len(vocabulary.encode(decision.utterance or "")) <= 60 for decision in heard)


def test_whatever_text_was_accepted_fits_once_the_context_has_grown(random_model):
    """The tail and the utterances come only with the first refresh; the text was measured before it."""
    small = CONTEXT.model_copy(update={"max_seq_len": 360})
    engine = StreamingEngine(random_model, small, TALKATIVE)
    engine.open("a", TEA)
    stream(engine, "a", "a", range(30))
    accepted = next(text for n in range(200, 0, -1) if pushed(engine, text := "tea " * n))
    stream(engine, "a", "a", range(30, 31))
    events = run(engine)["a"]
    assert accepted
    assert [d.frame for d in decisions(events)] == list(range(31))


def pushed(engine: StreamingEngine, text: str) -> bool:
    try:
        engine.push_text("a", text)
    except SessionError:
        return False
    return True


@pytest.mark.parametrize("parked", [False, True])
def test_a_session_whose_state_was_set_while_a_delta_was_written_can_move(random_model, parked):
    settings = StreamingSettings(speak_threshold=1.0, update_threshold=0.0)
    first, second = (StreamingEngine(random_model, CONTEXT, settings) for _ in range(2))
    first.open("a", TEA)
    stream(first, "a", "a", range(1))
    for _ in range(4):
        first.step()
    first.patch_state("a", dict.fromkeys(("S1", "S2", "S3"), "completed"))
    run(first)
    second.import_(first.export("a", parked))
    for engine in (first, second):
        stream(engine, "a", "a", range(1, 5))
    expected, moved = (decisions(run(engine)["a"]) for engine in (first, second))
    assert [(d.frame, d.state, d.delta) for d in moved] == [(d.frame, d.state, d.delta) for d in expected]


def test_a_session_whose_state_was_set_makes_no_record(random_model):
    engine = StreamingEngine(random_model, CONTEXT, SETTINGS)
    engine.open("a", TEA)
    engine.patch_state("a", {"S1": "completed"})
    with pytest.raises(SessionError, match="cannot become a record"):
        engine.record("a")


def test_a_recipe_without_tracking_is_background(random_model, vocabulary):
    loaded = tiny_model(vocabulary)
    loaded.model.config.trained_steps = {"speaking": 1}
    engine = StreamingEngine(loaded, CONTEXT, StreamingSettings(update_threshold=0.0, speak_threshold=1.0))
    engine.open("a", dataclasses.replace(TEA, track=False))
    stream(engine, "a", "a", range(2))
    assert [(d.p_update, d.delta, d.readout) for d in decisions(run(engine)["a"])] == [(0.0, (), None)] * 2
