"""HTTP: a session from its first request to its last, and a clear 4xx for every mistake."""

import json
import re
import threading

import numpy as np
import pytest

from prospect.dialogue.schema import Dialogue
from prospect.errors import UnknownSessionError, session_error
from prospect.model.checkpoint import LoadedModel
from prospect.protocol.messages import CLIENT_MESSAGES, SERVER_MESSAGES, EmbeddingMessage, FrameAppend, FrameOutcome
from prospect.serving import api
from prospect.serving.answers import STATUS
from prospect.serving.api import build_api
from prospect.serving.settings import SessionLimits
from prospect.vision.encoder import load_encoder
from tests.conftest import REPOSITORY
from tests.serving.http_requests import frame, local_client, open_session, refused
from tests.serving.models import ALWAYS, NEVER, STEPS, VISION, picture


def test_a_session_from_first_to_last(http):
    created = http.post("/v1/sessions", json={"goal": "Make tea", "steps": STEPS, "thresholds": NEVER}).json()
    path = f"/v1/sessions/{created['session_id']}"
    assert created["state"] == {"S1": "not_started", "S2": "not_started", "S3": "not_started"}
    assert http.post(f"{path}/text", json={"text": "I want to make tea."}).status_code == 202

    one = http.post(f"{path}/frames", content=picture(0, "JPEG"), headers={"content-type": "image/jpeg"})
    assert one.status_code == 200, one.text
    several = http.post(f"{path}/frames", json={"frames": [frame(1), frame(2)]}).json()["frames"]
    outcomes = [FrameOutcome(**outcome) for outcome in one.json()["frames"] + several]
    assert [(o.seq, o.frame) for o in outcomes] == [(0, 0), (1, 1), (2, 2)]
    assert all(o.utterance is None and not o.delta and len(o.readout) == 3 for o in outcomes)

    patched = http.patch(f"{path}/state", json={"state": {"S2": "in_progress"}}).json()
    assert patched["state"] == {"S1": "not_started", "S2": "in_progress", "S3": "not_started"}
    (after,) = http.post(f"{path}/frames", json=frame(3, seq=3, pts=1.5)).json()["frames"]
    assert after["state"] == patched["state"]

    view = http.get(path).json()
    assert (view["goal"], view["steps"], view["next_seq"], view["waiting"]) == ("Make tea", list(STEPS), 4, 0)
    assert view["counters"]["frames"] == 4
    assert http.delete(path).json() == {
        "type": "session.closed", "session_id": created["session_id"], "reason": "client", "frames": 4
    }  # fmt: skip
    assert refused(http.get(path))["code"] == "unknown_session"


@pytest.fixture
def calibrated(loaded, monkeypatch):
    thresholds = {"default": {"speak": 0.7, "update": 0.6}, "kitchen": {"speak": 0.8}}
    monkeypatch.setattr(loaded.model.config, "thresholds", thresholds)


def test_thresholds_that_a_session_leaves_out_are_the_models(calibrated, http):
    for opening, expected in (
        ({}, {"speak": 0.7, "update": 0.6}),
        ({"dataset": "kitchen", "thresholds": {"update": 0.1}}, {"speak": 0.8, "update": 0.1}),
    ):
        created = http.post("/v1/sessions", json=opening).json()
        assert created["thresholds"] == expected
        assert http.get(f"/v1/sessions/{created['session_id']}").json()["thresholds"] == expected


def test_an_utterance_comes_with_its_frame(http):
    path = f"/v1/sessions/{open_session(http, thresholds=ALWAYS)}/frames"
    (outcome,) = http.post(path, json=frame(0)).json()["frames"]
    assert outcome["utterance"].strip()


def test_a_recipe_text_brings_its_steps(http):
    recipe = "Tea\n\nSteps\n1. Boil water.\n2. Pour it over\n   the leaves.\n\nNotes\nBlack tea needs 4 minutes."
    session_id = open_session(http, steps=[], recipe=recipe)
    assert http.get(f"/v1/sessions/{session_id}").json()["steps"] == ["Boil water.", "Pour it over the leaves."]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"steps": ["boil"], "recipe": "1. Boil."}, "recipe and steps say the same twice"),
        ({"steps": [], "recipe": "Boil, then pour."}, "recipe has no numbered lines"),
        ({"recipe": "\n".join(f"{n}. x" for n in range(1, 1002))}, "recipe has 1,001 steps; send at most 1,000"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_refused(http, fields: dict, says: str):
    answer = http.post("/v1/sessions", json=fields)
    assert answer.status_code == 422
    assert says in refused(answer)["message"]


def test_a_session_says_what_was_said_and_becomes_a_record(http, host):
    """The record converts back to the tokens that were fed (tests/streaming/test_engine.py)."""
    path = f"/v1/sessions/{open_session(http, thresholds={'speak': 0.0, 'update': 1.0})}"
    http.post(f"{path}/text", json={"text": "Shall I begin?"})
    outcomes = http.post(f"{path}/frames", json={"frames": [frame(0), frame(1)]}).json()["frames"]
    transcript = http.get(f"{path}/transcript").json()
    assert transcript["complete"]
    first, second = transcript["entries"]
    assert (first["frame"], first["time"], first["user"]) == (0, 0.5, ["Shall I begin?"])
    assert [first["utterance"], second["utterance"]] == [outcome["utterance"] for outcome in outcomes]
    record = Dialogue.model_validate(http.get(f"{path}/record").json())
    assert [turn.role for turn in record.turns] == ["user", "assistant", "assistant"]
    assert (record.goal, record.step_names, record.duration) == ("Make tea", STEPS, 1.0)
    http.patch(f"{path}/state", json={"state": {"S1": "completed"}})
    answer = http.get(f"{path}/record")
    assert (answer.status_code, refused(answer)["code"]) == (409, "no_record")
    assert http.get(f"{path}/transcript").json() == transcript


def test_a_picture_and_its_embedding_are_decided_alike(http, loaded: LoadedModel):
    encoder = load_encoder(VISION)
    embedding = encoder.encode(encoder.decode_image(picture(5))[None])[0]
    answers = []
    for message in (
        FrameAppend(image=picture(5)),
        FrameAppend(embedding=EmbeddingMessage.of(embedding, loaded.fingerprint)),
    ):
        path = f"/v1/sessions/{open_session(http, thresholds=NEVER)}/frames"
        body = message.model_dump(mode="json", exclude_none=True)
        answers.append(http.post(path, json=body).json()["frames"][0])
    assert answers[0]["p_speak"] == pytest.approx(answers[1]["p_speak"], abs=1e-3)


def test_model_and_health(http, loaded: LoadedModel):
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/v1/model").json() == {
        "name": "tests", "version": "", "fingerprint": loaded.fingerprint, "fps": 2, "tokens_per_frame": 1, "dim": 64,
        "accepts_images": True,
    }  # fmt: skip


def test_each_frame_is_taken_once_and_in_order(http):
    path = f"/v1/sessions/{open_session(http, thresholds=NEVER)}/frames"
    http.post(path, json=frame(0, seq=0, pts=0.0))
    twice = http.post(path, json=frame(0, seq=0))
    assert (twice.status_code, refused(twice)["code"], refused(twice)["field"]) == (409, "duplicate_frame", "seq")
    ahead = http.post(path, json=frame(0, seq=2))
    assert (ahead.status_code, refused(ahead)["code"]) == (409, "sequence_gap")
    assert "2 came and 1 was expected" in refused(ahead)["message"]
    mixed = http.post(path, json={"frames": [frame(0, seq=1), frame(0, seq=3)]})
    assert refused(mixed)["code"] == "sequence_gap"
    early = http.post(path, json=frame(0, seq=1, pts=0.2))
    assert (early.status_code, refused(early)["code"]) == (409, "same_frame")
    assert http.post(path, json=frame(0, seq=1, pts=0.4)).json()["frames"][0]["frame"] == 1


def test_a_broken_picture_stops_the_whole_request_and_can_be_sent_again(http):
    path = f"/v1/sessions/{open_session(http, thresholds=NEVER)}"
    broken = FrameAppend(seq=1, image=picture(1)[:200]).model_dump(mode="json", exclude_none=True)
    answer = http.post(f"{path}/frames", json={"frames": [frame(0, seq=0), broken]})
    assert (answer.status_code, refused(answer)["code"], refused(answer)["field"]) == (422, "invalid_data", "image")
    assert http.get(path).json()["next_seq"] == 0
    assert len(http.post(f"{path}/frames", json={"frames": [frame(0, seq=0), frame(1, seq=1)]}).json()["frames"]) == 2


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field", "says"),
    [
        ("POST", "/v1/sessions", {"gaol": "tea"}, 422, "gaol", "gaol: unknown field"),
        ("POST", "/v1/sessions", {"steps": "tea"}, 422, "steps", "steps ('tea') must be a list"),
        ("POST", "/v1/sessions", {"resume": "a:b"}, 422, "resume", "only a stream continues"),
        ("POST", "/v1/sessions", {"knowledge": "milk " * 2000}, 422, "context", "limit"),
        ("POST", "/v1/sessions/none/text", {"text": "x"}, 404, "session_id", "no session 'none' is open here"),
        ("POST", "/v1/sessions/{id}/text", {"text": ""}, 422, "text", "text ('') must "),
        ("POST", "/v1/sessions/{id}/frames", {}, 422, None, "either image or embedding"),
        ("POST", "/v1/sessions/{id}/frames", {"frames": []}, 422, "frames", "frames ([]) must "),
        ("POST", "/v1/sessions/{id}/frames", [], 422, None, "message ([]) must be an object"),
        ("PATCH", "/v1/sessions/{id}/state", {"state": {"S9": "completed"}}, 422, "state", "no step 'S9'"),
        ("PATCH", "/v1/sessions/{id}/state", {"state": {"S1": "done"}}, 422, "state.S1", "('done') must be"),
        ("GET", "/v1/nothing", None, 404, None, "GET /v1/nothing: not found"),
    ],
)
def test_a_mistake_is_one_sentence(http, method, path, body, status, field, says):
    answer = http.request(method, path.replace("{id}", open_session(http)), json=body)
    assert answer.status_code == status, answer.text
    assert refused(answer)["field"] == field
    assert says in refused(answer)["message"]
    assert "\n" not in refused(answer)["message"]


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"3"])
def test_a_body_that_is_no_json_object(http, body):
    path = f"/v1/sessions/{open_session(http)}"
    for answer in (http.post(f"{path}/frames", content=body), http.post(f"{path}/text", content=body)):
        assert answer.status_code == 422
        assert refused(answer)["code"] == "invalid_message"


@pytest.mark.parametrize("kind", ["video/mp4", "image/gif", "text/plain; charset=utf-8"])
def test_a_content_type_that_is_none_of_ours(http, kind: str):
    path = f"/v1/sessions/{open_session(http)}/frames"
    answer = http.post(path, content=b"x", headers={"content-type": kind})
    assert (answer.status_code, refused(answer)["code"]) == (415, "unsupported_media")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
def test_a_picture_is_sent_as_it_is(http, kind: str):
    """A content type is written in any case, and may have parameters."""
    path = f"/v1/sessions/{open_session(http, thresholds=NEVER)}/frames"
    answer = http.post(path, content=picture(0, kind), headers={"content-type": f"IMAGE/{kind}; q=1"})
    assert [each["seq"] for each in answer.json()["frames"]] == [0]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("PUT", "/v1/sessions", b"{}", 405, "method_not_allowed"),
        ("GET", "/v2/sessions", b"", 404, "not_found"),
        ("POST", "/v1/sessions", b"\xff\xfe", 422, "invalid_message"),
        ("POST", "/v1/sessions", b"[" * 100_000, 422, "invalid_message"),
    ],
)
def test_what_no_operation_takes_has_a_code_of_its_own(http, method, path, body, status, code):
    answer = http.request(method, path, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, refused(answer)["code"]) == (status, code)


@pytest.mark.parametrize(
    ("path", "methods"), [("/v1/sessions", "POST"), ("/v1/sessions/a", "DELETE, GET"), ("/healthz", "GET")]
)
def test_a_method_that_is_not_there_is_told_the_others(http, path: str, methods: str):
    answer = http.put(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, methods)


@pytest.mark.parametrize("code", ["unavailable", "fenced"])
def test_a_session_whose_owner_cannot_be_found_is_unavailable(http, host, code: str, monkeypatch):
    async def fails(*_: object) -> None:
        raise session_error(code, "the session store is away")

    monkeypatch.setattr(host, "owner_of", fails)
    answer = http.get("/v1/sessions/a")
    assert (answer.status_code, refused(answer)["code"]) == (503, code)
    assert answer.headers["retry-after"] == "5"


def test_a_body_for_another_gateway_is_bounded_too(http, host, monkeypatch):
    async def elsewhere(*_: object) -> str:
        return "127.0.0.1:1"

    monkeypatch.setattr(host, "owner_of", elsewhere)
    answer = http.post("/v1/sessions/a/text", content=bytes(2**24 + 1))
    assert (answer.status_code, refused(answer)["code"]) == (413, "too_large")
    answer = http.get("/v1/sessions/a")
    assert (answer.status_code, refused(answer)["code"]) == (503, "unavailable")


def test_a_defect_is_answered_as_one(host, monkeypatch):
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(host, "view", broken)
    with local_client(build_api(host), raise_server_exceptions=False) as http:
        answer = http.get("/v1/sessions/a")
        assert (answer.status_code, refused(answer)["code"]) == (500, "internal")
        assert http.get("/healthz").status_code == 200


def test_a_session_has_a_context_strategy(http):
    open_session(http, context_strategy="drop_all")
    refusal = refused(http.post("/v1/sessions", json={"context_strategy": "forget"}))
    assert refusal["field"] == "context_strategy"
    assert "drop_all" in refusal["message"]


def test_health_is_that_of_the_engines_thread(http, worker, monkeypatch):
    assert http.get("/healthz").status_code == 200
    free = threading.Event()
    worker._thread._thread.submit(free.wait)
    with monkeypatch.context() as patch:
        patch.setattr(api, "HEALTHY_WITHIN_S", 0.2)
        answer = http.get("/healthz")
    assert (answer.status_code, refused(answer)["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "5"
    free.set()
    assert http.get("/healthz").status_code == 200


def test_the_description_is_whole(http):
    """Every reference leads somewhere, every refusal has our form, and every message of the stream a schema."""
    whole = http.get("/openapi.json").json()
    schemas = whole["components"]["schemas"]
    text = json.dumps(whole)
    assert set(re.findall(r'"#/components/schemas/(\w+)"', text)) <= set(schemas)
    assert "#/$defs" not in text
    for path, operations in whole["paths"].items():
        for method, operation in operations.items():
            refusals = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
            if path not in {"/healthz", "/v1/model", "/v1/status"}:
                assert "422" in refusals, (method, path)
            for answer in refusals.values():
                assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Refused"}
    for message in (*CLIENT_MESSAGES, *SERVER_MESSAGES):
        assert schemas[message.__name__]["properties"]["type"]["const"] == message.model_fields["type"].default


def test_a_wrong_embedding_names_both_sides(http, loaded: LoadedModel):
    path = f"/v1/sessions/{open_session(http)}/frames"
    stranger = FrameAppend(embedding=EmbeddingMessage.of(np.zeros((1, 64)), "other"))
    answer = http.post(path, json=stranger.model_dump(mode="json", exclude_none=True))
    assert (answer.status_code, refused(answer)["code"]) == (409, "fingerprint_mismatch")
    assert "other" in refused(answer)["message"]
    assert loaded.fingerprint in refused(answer)["message"]
    narrow = FrameAppend(embedding=EmbeddingMessage.of(np.zeros((2, 32)), loaded.fingerprint))
    answer = http.post(path, json=narrow.model_dump(mode="json", exclude_none=True))
    assert refused(answer)["code"] == "wrong_shape"
    assert "[2, 32], expected [1, 64]" in refused(answer)["message"]


def test_places_and_waiting_frames_are_limited(http):
    sessions = [open_session(http) for _ in range(3)]
    full = http.post("/v1/sessions", json={})
    assert (full.status_code, refused(full)["code"]) == (429, "busy")
    http.delete(f"/v1/sessions/{sessions[0]}")
    open_session(http)
    taken = http.post("/v1/sessions", json={"session_id": sessions[1]})
    assert "already" in refused(taken)["message"]


class TestIdle:
    @pytest.fixture
    def host_settings(self) -> SessionLimits:
        return SessionLimits(idle_timeout_s=0.2)

    def test_a_session_that_nobody_uses_is_closed(self, http, host):
        path = f"/v1/sessions/{open_session(http)}"
        while host.open_sessions:
            http.get("/healthz")
        assert refused(http.get(path))["code"] == "unknown_session"

    def test_a_session_that_is_closed_while_it_is_swept_does_not_end_the_sweep(self, http, host, monkeypatch):
        end, swept = host._end, []

        async def closed_meanwhile(stream, reason):
            await end(stream, reason)
            if not swept:
                swept.append(stream)
                raise UnknownSessionError("gone")

        monkeypatch.setattr(host, "_end", closed_meanwhile)
        for _ in range(2):
            open_session(http)
            while host.open_sessions:
                http.get("/healthz")
        host.check_health()


def test_the_page_explains_every_code():
    page = (REPOSITORY / "docs" / "protocol.md").read_text()
    documented = set(re.findall(r"`([a-z_]+)`", "\n".join(re.findall(r"^\| .*", page, re.MULTILINE))))
    assert set(STATUS) <= documented
