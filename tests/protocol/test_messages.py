"""The protocol: every documented message parses, and every mistake is one sentence that names the field."""

import json
import re
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prospect.dialogue.state import StepState, TaskState, Transition
from prospect.errors import SessionError
from prospect.protocol.messages import (
    ClientMessage,
    EmbeddingMessage,
    ErrorMessage,
    FrameAppend,
    FrameDecision,
    FrameOutcome,
    FramesRequest,
    FramesResponse,
    ServerMessage,
    ServerStatus,
    state_map,
)
from prospect.protocol.parsing import parse_client, parse_server
from prospect.streaming.types import Decision
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "protocol.md").read_text()
MESSAGES = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)


def types_of(union: object) -> set[str]:
    return {member.model_fields["type"].default for member in get_args(get_args(union)[0])}


CLIENT, SERVER = types_of(ClientMessage), types_of(ServerMessage)


def test_the_page_shows_every_message():
    assert {json.loads(text)["type"] for text in MESSAGES} == CLIENT | SERVER


@pytest.mark.parametrize("text", MESSAGES, ids=lambda text: json.loads(text)["type"])
def test_a_documented_message_parses_and_is_written_as_documented(text):
    parse = parse_client if json.loads(text)["type"] in CLIENT else parse_server
    message = parse(text)
    assert json.loads(message.model_dump_json(exclude_unset=True)) == json.loads(text)
    assert parse(message.model_dump_json(exclude_none=True)) == message


def test_documented_http_bodies_parse():
    (request,) = re.findall(r"```json http-request\n(.*?)```", PAGE, re.DOTALL)
    (response,) = re.findall(r"```json http-response\n(.*?)```", PAGE, re.DOTALL)
    assert len(FramesRequest.model_validate_json(request).frames) == 2
    assert len(FramesResponse.model_validate_json(response).frames) == 2
    (status,) = re.findall(r"```json http-status\n(.*?)```", PAGE, re.DOTALL)
    assert ServerStatus.model_validate_json(status).model_dump(mode="json") == json.loads(status)


@pytest.mark.parametrize(
    ("data", "field", "says"),
    [
        ("{", None, "message: is not JSON"),
        ("[1]", None, "message ([1]) must be an object"),
        ("{}", "type", "type: is missing"),
        ('{"type": "session.upadte"}', "type", "('session.upadte') must be one of 'session.update'"),
        ('{"type": "session.update", "gaol": "x"}', "gaol", "gaol: unknown field"),
        ('{"type": "session.update", "session_id": "a/b"}', "session_id", "session_id ('a/b') must "),
        (
            '{"type": "session.update", "thresholds": {"speak": 2}}',
            "thresholds.speak",
            "(2) must be less than or equal to 1",
        ),
        ('{"type": "session.update", "resume": "a:b", "goal": "x"}', None, "leave out goal"),
        ('{"type": "input_frame.append", "seq": -1, "image": ""}', "seq", "seq (-1) must "),
        ('{"type": "input_frame.append", "seq": "x", "image": ""}', "seq", "seq ('x') must be an integer"),
        ('{"type": "input_frame.append", "pts": NaN, "image": ""}', "pts", "pts (nan) must "),
        ('{"type": "input_frame.append", "pts": 1.7976931348623157e308, "image": ""}', "pts", "pts (1.79"),
        ('{"type": "input_frame.append", "pts": 1e300, "image": ""}', "pts", "pts (1e+300) must"),
        ('{"type": "input_frame.append", "pts": Infinity, "image": ""}', "pts", "pts (inf) must"),
        ('{"type": "input_frame.append", "seq": 0}', None, "either image or embedding"),
        ('{"type": "input_frame.append", "image": "a*b"}', "image", "image: is not base64"),
        (
            '{"type": "input_frame.append", "embedding": {"data": "ADw=", "shape": [1, 2], "fingerprint": "f"}}',
            "embedding",
            "embedding: 2 bytes do not hold float16 of shape [1, 2]: 4 do",
        ),
        ('{"type": "input_frame.append", "embedding": {"data": "ADw=", "shape": [1, 1]}}', "embedding.fingerprint", ""),
        ('{"type": "input_text.append"}', "text", "text: is missing"),
        ('{"type": "state.patch", "state": {"S1": "done"}}', "state.S1", "('done') must be"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_field(data, field, says):
    with pytest.raises(SessionError) as caught:
        parse_client(data)
    sentence = str(caught.value)
    assert caught.value.field == field
    assert says in sentence
    assert "\n" not in sentence
    assert len(sentence) < 300
    assert sentence.startswith((f"{field or 'message'}: ", f"{field or 'message'} ("))


@given(st.text(max_size=30) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_whatever_comes_is_a_message_or_a_session_error(data):
    with pytest.raises(SessionError):
        parse_client(data)


def test_a_client_ignores_what_it_does_not_know():
    parse_server('{"type": "frame.dropped", "seq": 1, "reason": "r", "since": "version 2"}')


@pytest.mark.parametrize("shape", [(1, 5), (3, 4)])
def test_an_embedding_survives_the_wire_to_the_bit(shape):
    sent = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    message = FrameAppend(seq=0, embedding=EmbeddingMessage.of(sent, "f"))
    received = parse_client(message.model_dump_json())
    assert received.embedding.array().tobytes() == sent.tobytes()
    assert received.embedding.array().shape == shape


def test_a_state_is_written_in_recipe_order():
    state = TaskState((StepState.COMPLETED, StepState.IN_PROGRESS, StepState.NOT_STARTED))
    assert list(state_map(state).items()) == [("S1", "completed"), ("S2", "in_progress"), ("S3", "not_started")]


def test_a_decision_is_written_with_its_seq():
    state = TaskState((StepState.COMPLETED, StepState.IN_PROGRESS))
    decision = Decision(7, 0.9, 0.8, state, (Transition(0, completes=True),), "Good.", readout=state, fast=False)
    shared = {"seq": 3, "frame": 7, "p_speak": 0.9, "p_update": 0.8, "readout": state_map(state), "silence": None}
    more = {"state": state_map(state), "delta": "S1->complete", "utterance": "Good."}
    assert FrameDecision.of(3, decision).model_dump() == shared | {"type": "decision"}
    assert FrameOutcome.of(3, decision).model_dump() == shared | more


def test_an_error_carries_code_sentence_and_field():
    error = ErrorMessage.of(SessionError("text: is empty", field="text"), seq=3)
    assert (error.code, error.message, error.field, error.seq) == ("invalid_message", "text: is empty", "text", 3)
