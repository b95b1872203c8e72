"""HTTP: a session from its first request to its last, and a clear 4xx for every mistake."""

import re

import numpy as np
import pytest
from fastapi.testclient import TestClient

from prospect.model.checkpoint import LoadedModel
from prospect.protocol.messages import EmbeddingMessage, FrameAppend, FrameOutcome
from prospect.serving.api import _STATUS
from prospect.serving.settings import SessionLimits
from prospect.vision.encoder import load_encoder
from tests.conftest import REPOSITORY
from tests.serving.models import ALWAYS, NEVER, STEPS, VISION, picture


def open_session(http: TestClient, **fields: object) -> str:
    answer = http.post("/v1/sessions", json={"goal": "Make tea", "steps": STEPS, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()["session_id"]


def frame(seed: int, **fields: object) -> dict:
    return FrameAppend(image=picture(seed), **fields).model_dump(mode="json", exclude_none=True)


def refused(answer) -> dict:
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"code", "message", "field"}
    return answer.json()["error"]


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


def test_an_utterance_comes_with_its_frame(http):
    path = f"/v1/sessions/{open_session(http, thresholds=ALWAYS)}/frames"
    (outcome,) = http.post(path, json=frame(0)).json()["frames"]
    assert outcome["utterance"].strip()


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
        "name": "tests", "fingerprint": loaded.fingerprint, "fps": 2, "tokens_per_frame": 1, "dim": 64,
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


def test_a_content_type_that_is_none_of_ours(http):
    path = f"/v1/sessions/{open_session(http)}/frames"
    answer = http.post(path, content=b"x", headers={"content-type": "video/mp4"})
    assert (answer.status_code, refused(answer)["code"]) == (415, "unsupported_media")


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


def test_the_page_explains_every_code():
    page = (REPOSITORY / "docs" / "protocol.md").read_text()
    documented = set(re.findall(r"`([a-z_]+)`", "\n".join(re.findall(r"^\| .*", page, re.MULTILINE))))
    assert set(_STATUS) <= documented
