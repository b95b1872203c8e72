"""The context and the grammar: tokens from events and events from tokens."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from prospect.data.batches import Collator
from prospect.data.clips import clip_sequence
from prospect.data.settings import LabelSamplingSettings
from prospect.dialogue.prompt import SYSTEM_PROMPT, ContextSettings
from prospect.dialogue.sequence import SequenceBuilder, TextTask, shifted
from prospect.dialogue.state import StepState, TaskState, Transition
from prospect.dialogue.timeline import FrameEvents
from prospect.dialogue.vocabulary import GRAMMAR_TOKENS, Vocabulary
from prospect.errors import CheckpointError, ConfigError, DataError
from prospect.streaming.session.strategies import ContextPlan, session_context
from prospect.streaming.types import SessionSpec
from tests.factories import CONTEXT, features, tea_clip, tea_clips, tea_dialogue, tiny_vocabulary

VOCABULARY = tiny_vocabulary()
BUILDER = SequenceBuilder(VOCABULARY, CONTEXT, 1)
WIDE = SequenceBuilder(VOCABULARY, ContextSettings(), 1)

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
texts = words.filter(lambda t: VOCABULARY.decode(VOCABULARY.encode(t)) == t)
delta = st.lists(st.builds(Transition, st.integers(0, 4), st.booleans()), max_size=3).map(tuple)
frame_events = st.builds(
    lambda user, delta, say: FrameEvents(tuple(user), delta, say), st.lists(texts, max_size=2), delta, st.none() | texts
)


@settings(deadline=None)
@given(st.lists(frame_events, max_size=6), st.sampled_from([1, 5]), st.none() | texts)
def test_tokens_parse_back_to_the_events_and_the_summary_they_were_built_from(frames, tokens_per_frame, summary):
    builder = SequenceBuilder(VOCABULARY, CONTEXT, tokens_per_frame)
    context = builder.context(goal="Make tea", steps=[], state=TaskState(()))
    sequence = builder.sequence(context, frames, summary)
    behind = sequence.ids[len(context.ids) :]
    parsed = builder.parse(behind)
    assert parsed == {frame: event for frame, event in enumerate(frames) if event != FrameEvents()}
    assert builder.split_summary(behind)[1] == summary
    assert len(sequence.image_positions) == (len(frames) + (summary is not None)) * tokens_per_frame
    assert len(sequence.decision_positions) == len(frames)
    learned = [i for i, task in zip(sequence.ids, sequence.text_tasks, strict=True) if task is TextTask.SUMMARY]
    assert learned == ([] if summary is None else [*VOCABULARY.encode(summary), VOCABULARY.stop])
    assert all(sequence.ids[p] == VOCABULARY.image for p in sequence.decision_positions)


def test_stop_tokens_carry_loss_and_prefixes_do_not():
    clip = tea_clip()
    sequence = clip_sequence(clip, BUILDER)
    stops = [i for i, token in enumerate(sequence.ids) if token == VOCABULARY.stop]
    tasks = [sequence.text_tasks[i] for i in stops]
    num_users = sum(len(e.user) for e in clip.events.values())
    assert tasks.count(TextTask.NONE) == num_users
    assert tasks.count(TextTask.DST) == sum(bool(e.delta) for e in clip.events.values())
    assert tasks.count(TextTask.SPEAKING) == sum(e.utterance is not None for e in clip.events.values())
    for prefix in (VOCABULARY.dst, VOCABULARY.asst, VOCABULARY.image):
        at_prefix = [t for t, token in zip(sequence.text_tasks, sequence.ids, strict=True) if token == prefix]
        assert set(at_prefix) == {TextTask.NONE}


@pytest.mark.parametrize("max_seq_len", [300, 350, 400, 4096])
def test_every_event_appears_exactly_once_over_the_clips_and_initial_states_are_replays(max_seq_len):
    context = CONTEXT.model_copy(update={"max_seq_len": max_seq_len, "tail_seconds": 2.0})
    clips = tea_clips(VOCABULARY, context, random_start_share=1.0)
    found: dict[int, FrameEvents] = {}
    state = TaskState.initial(3)
    frame = 0
    for clip in clips:
        sequence = clip_sequence(clip, SequenceBuilder(VOCABULARY, context, 1))
        assert len(sequence.ids) <= max_seq_len
        assert len(sequence.image_positions) == clip.stop - clip.first_row
        assert clip.start == frame
        assert clip.initial_state == state
        num_context = len(sequence.ids) - len(behind_context(sequence, clip))
        parsed = BUILDER.parse(sequence.ids[num_context:])
        assert not found.keys() & shifted(parsed, clip.start).keys()
        found |= shifted(parsed, clip.start)
        state, frame = clip.states[-1], clip.stop
    assert found == tea_clip().events
    assert state.labels == ("completed",) * 3


def behind_context(sequence, clip):
    """The tokens behind the context: from the first decided frame's user turns on."""
    first = sequence.image_positions[clip.tail_frames]
    while first > 0 and sequence.ids[first - 1] == VOCABULARY.stop:
        first = max(i for i in range(first) if sequence.ids[i] == VOCABULARY.user)
    return sequence.ids[first:]


def test_the_context_is_byte_identical_whoever_calls():
    dialogue, clip = tea_dialogue(), tea_clip()
    spec = SessionSpec(goal=dialogue.goal, steps=dialogue.step_names, knowledge=dialogue.knowledge)
    live = session_context(BUILDER, spec, ContextPlan(TaskState.initial(3)))
    trained = clip_sequence(clip, BUILDER)
    assert list(live.ids) == trained.ids[: len(live.ids)]
    assert live.step_positions == trained.step_positions
    assert live.ids.count(VOCABULARY.tokenizer.bos_token_id) == 1


def test_step_positions_are_the_last_token_of_each_step_s_line():
    state = TaskState((StepState.COMPLETED, StepState.IN_PROGRESS, StepState.NOT_STARTED))
    context = WIDE.context(goal="Make tea", steps=["boil", "pour", "milk"], state=state)
    for position, line in zip(context.step_positions, ("S1 (completed) boil", "S2 (in_progress) pour"), strict=False):
        assert VOCABULARY.decode(context.ids[: position + 1]).endswith(line)


def test_a_long_recipe_is_windowed_around_the_current_steps_and_says_so():
    names = [f"step number {i} of many" for i in range(80)]
    state = TaskState((StepState.COMPLETED,) * 40 + (StepState.IN_PROGRESS,) + (StepState.NOT_STARTED,) * 39)
    context = WIDE.context(goal="x", steps=names, state=state, room=500)
    assert context.num_text <= 500
    assert context.step_positions[40] > 0
    assert context.step_positions[0] == context.step_positions[79] == -1
    assert "earlier steps not shown" in context.text
    assert "later steps not shown" in context.text


def test_without_the_recipe_the_goal_stands_alone_whoever_calls():
    bare = SequenceBuilder(VOCABULARY, CONTEXT.model_copy(update={"recipe": False}), 1)
    dialogue, clip = tea_dialogue(), tea_clip()
    spec = SessionSpec(goal=dialogue.goal, steps=dialogue.step_names, knowledge="Use the blue kettle.\n1. boil water")
    live = session_context(bare, spec, ContextPlan(TaskState.initial(3)))
    assert "Make tea" in live.text
    assert "blue kettle" in live.text
    assert not any(step in live.text for step in ("Steps:", "S1", "boil", "not shown"))
    trained = clip_sequence(clip, bare)
    assert trained.step_positions == live.step_positions == (-1, -1, -1)
    batch = Collator(bare, features, LabelSamplingSettings(watch_only_share=0.99))([clip])
    assert len(batch.state_labels) == 0
    assert batch.update.max() == 1, "deltas are still learned, and no clip is shown for the state head alone"


def test_a_context_that_cannot_fit_is_refused_with_both_numbers():
    with pytest.raises(DataError, match=r"take \d+ tokens .* the limit is 60"):
        WIDE.context(goal="tea " * 100, steps=["x"], state=TaskState.initial(1), room=60)


@pytest.mark.parametrize("token", [*GRAMMAR_TOKENS, "<stop>", "<s>"])
def test_what_people_write_never_becomes_a_control_token(token):
    special = set(VOCABULARY.tokenizer.all_special_ids)
    assert not special & set(VOCABULARY.encode(f"say {token} please"))
    context = WIDE.context(goal=token, steps=[f"a {token}"], state=TaskState.initial(1), utterances=[("user", token)])
    plain = WIDE.context(goal="x", steps=["a x"], state=TaskState.initial(1), utterances=[("user", "x")])
    assert sum(i in special for i in context.ids) == sum(i in special for i in plain.ids)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([VOCABULARY.dst], "cannot stand at 0"),
        ([VOCABULARY.image, VOCABULARY.asst, 300], "no stop token"),
        ([VOCABULARY.user, VOCABULARY.stop], "no frame follows"),
    ],
)
def test_tokens_outside_the_grammar_are_refused(ids, message):
    with pytest.raises(DataError, match=message):
        BUILDER.parse(ids)


def test_special_tokens_that_a_tokenizer_does_not_name_stay_text_too():
    tokenizer = copy.deepcopy(VOCABULARY.tokenizer)
    tokenizer.add_tokens([AddedToken("<|start_header_id|>", special=True)])
    header = tokenizer.convert_tokens_to_ids("<|start_header_id|>")
    assert header not in Vocabulary(tokenizer).encode("<|start_header_id|>system")


KNOWN = {
    "goal": "Make tea",
    "steps": ["boil", "pour"],
    "state": TaskState((StepState.COMPLETED, StepState.NOT_STARTED)),
    "utterances": [("user", "What now?")],
}
RECIPE = "Steps:\nS1 (completed) boil\nS2 (not_started) pour"


@pytest.mark.parametrize(("layout", "holder"), [(1, "user"), (2, "system")])
def test_the_layout_says_which_turn_holds_recipe_and_state(layout, holder):
    tokenizer = copy.deepcopy(VOCABULARY.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    text = SequenceBuilder(Vocabulary(tokenizer), ContextSettings(layout=layout), 1).context(**KNOWN).text
    turns = {role: text.split(f"<{role}>")[1].split(f"</{role}>")[0] for role in ("system", "user")}
    assert [role for role, turn in turns.items() if RECIPE in turn] == [holder]
    assert turns["system"].startswith(SYSTEM_PROMPT)
    assert turns["user"].startswith("Task: Make tea\nLast said:\nuser: What now?")


TEMPLATES = {
    "plain": "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}",
    "trims": "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}",
    "refuses system": "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{{ m.content }}\n{% endfor %}",
    "drops system": "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
    "takes parts": "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}\n{% endfor %}",
}


@pytest.mark.parametrize("layout", [1, 2])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_whatever_a_template_does_the_context_shows_everything(template, layout):
    tokenizer = copy.deepcopy(VOCABULARY.tokenizer)
    tokenizer.chat_template = template
    vocabulary = Vocabulary(tokenizer)
    settings = ContextSettings(layout=layout, max_context_tokens=2000)
    context = SequenceBuilder(vocabulary, settings, 1).context(**KNOWN)
    for text in (SYSTEM_PROMPT, RECIPE, "Task: Make tea", "user: What now?"):
        assert context.text.count(text) == 1
    for position, line in zip(context.step_positions, RECIPE.splitlines()[1:], strict=True):
        assert vocabulary.decode(context.ids[: position + 1]).endswith(line)


@pytest.mark.parametrize("layout", [1, 2])
@pytest.mark.parametrize("known", [{"steps": ["boil", " "]}, {"steps": ["\u3000", "boil"]}, {"knowledge": "Tea.\n \n"}])
def test_a_template_that_trims_meets_no_outer_white_space(known, layout):
    tokenizer = copy.deepcopy(VOCABULARY.tokenizer)
    tokenizer.chat_template = TEMPLATES["trims"]
    builder = SequenceBuilder(Vocabulary(tokenizer), ContextSettings(layout=layout), 1)
    steps = known.get("steps", [])
    context = builder.context(
        goal="",
        steps=steps,
        state=TaskState.initial(len(steps)),
        **{"knowledge": ""} | {key: value for key, value in known.items() if key == "knowledge"},
    )
    assert all(position > 0 for position in context.step_positions)


@pytest.mark.parametrize(
    ("template", "message"),
    [(None, "chat template is missing"), ("{{ raise_exception('no') }}", "leaves out the text"), ("Hi", "leaves out")],
)
def test_a_tokenizer_whose_template_shows_nothing_is_refused_when_it_is_loaded(template, message):
    tokenizer = copy.deepcopy(VOCABULARY.tokenizer)
    tokenizer.chat_template = template
    with pytest.raises(CheckpointError, match=message):
        Vocabulary(tokenizer)


def test_a_model_of_earlier_versions_keeps_its_layout():
    earlier = {"max_seq_len": 512}
    assert ContextSettings.of_model(earlier).layout == 1
    assert ContextSettings.of_model({**earlier, "layout": 2}).layout == 2
    assert ContextSettings(max_seq_len=900).over(earlier) == ContextSettings(max_seq_len=900, layout=1)
    assert ContextSettings(layout=1).over(earlier).max_seq_len == 512
    with pytest.raises(ConfigError, match=r"`context.layout` is 2, but the model was trained with 1"):
        ContextSettings(layout=2).over(earlier)
