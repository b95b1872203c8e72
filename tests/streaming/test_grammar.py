"""Deltas that can be written: every legal one, and nothing else."""

import functools
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prospect.dialogue.state import Delta, StatePolicy, StepState, TaskState, Transition, format_delta, parse_delta
from prospect.dialogue.vocabulary import GRAMMAR_TOKENS, Vocabulary
from prospect.streaming.session.grammar import DeltaGrammar
from tests.factories import tiny_vocabulary

LIMIT = 40
POLICIES: tuple[StatePolicy, ...] = ("strict", "implied_start")


def joining_vocabulary() -> Vocabulary:
    """Of a tokenizer that knows no words: its tokens reach from one transition into the next."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<stop>", *GRAMMAR_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"S{n}->complete; S{n + 1}->start" for n in range(1, 12)] * 5, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<stop>")
    wrapped.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    return Vocabulary(wrapped)


@functools.cache
def grammar(tokenizer: str, policy: StatePolicy, limit: int = LIMIT) -> DeltaGrammar:
    return DeltaGrammar(tiny_vocabulary() if tokenizer == "words" else joining_vocabulary(), policy, limit)


states = st.lists(st.sampled_from(StepState), max_size=14).map(lambda steps: TaskState(tuple(steps)))


@pytest.mark.parametrize("tokenizer", ["words", "joining"])
@given(state=states, policy=st.sampled_from(POLICIES), data=st.data())
def test_whatever_is_chosen_gives_a_legal_delta(tokenizer, state, policy, data):
    rules = grammar(tokenizer, policy)
    writer, ids = rules.start(state), []
    while True:
        ids += writer.take_forced()
        choices = [*writer.choices, *([None] if writer.may_stop else [])]
        if writer.done or (token := data.draw(st.sampled_from(choices))) is None:
            break
        writer.take(token)
        ids.append(token)
    assert bool(ids) == bool(state.legal_transitions(policy))
    if ids:
        assert parse_delta(rules.vocabulary.decode(ids)) == writer.delta
        spelt = rules.vocabulary.encode(format_delta(writer.delta))
        assert ids == spelt or tokenizer == "joining"
        assert max(len(ids), len(spelt)) <= LIMIT
        assert state.apply(writer.delta, policy) == (writer.state, ())


@given(state=states, policy=st.sampled_from(POLICIES), data=st.data())
def test_every_legal_delta_can_be_written_up_to_the_limit(state, policy, data):
    rules, delta, after = grammar("words", policy), (), state
    for _ in range(data.draw(st.integers(1, 6))):
        if legal := after.legal_transitions(policy):
            delta += (data.draw(st.sampled_from(legal)),)
            after, _ = after.apply(delta[-1:], policy)
    ids = rules.vocabulary.encode(format_delta(delta))
    if delta and len(ids) <= LIMIT:
        assert written(rules, state, ids) == delta


def written(rules: DeltaGrammar, state: TaskState, ids: list[int]) -> Delta:
    writer = rules.start(state)
    for token in ids:
        assert token in writer.choices
        writer.take(token)
    assert writer.may_stop
    return writer.delta


@pytest.mark.parametrize(("policy", "count"), [("strict", 3), ("implied_start", 5)])
def test_one_step_may_complete_without_a_start_only_under_the_policy_that_implies_it(policy, count):
    """Of two steps, one in progress: all deltas of one or two transitions, counted by hand."""
    rules, state = grammar("words", policy), TaskState((StepState.IN_PROGRESS, StepState.NOT_STARTED))
    every = [Transition(step, completes) for step in range(2) for completes in (False, True)]
    deltas = [*itertools.permutations(every, 1), *itertools.permutations(every, 2)]
    legal = [delta for delta in deltas if not state.apply(delta, policy)[1]]
    one = [delta for delta in legal if len(delta) == 1]
    assert len(one) == (2 if policy == "strict" else 3)
    assert len(legal) - len(one) == count
    for delta in legal:
        assert written(rules, state, rules.vocabulary.encode(format_delta(delta))) == delta


def test_what_leaves_no_choice_is_taken_at_once():
    rules = grammar("words", "strict")
    writer = rules.start(TaskState((StepState.COMPLETED, StepState.IN_PROGRESS)))
    assert rules.vocabulary.decode(writer.take_forced()) == "S2->complete"
    assert writer.done
    assert writer.may_stop
    assert rules.start(TaskState((StepState.COMPLETED,))).done
