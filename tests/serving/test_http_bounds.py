"""HTTP: bounds of what a client may send, each refused in a sentence before it costs anything."""

import io
import json
from collections.abc import Iterator

import pytest
from PIL import Image

from tests.serving.http_requests import frame, open_session, refused
from tests.serving.models import NEVER, picture


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"goal": "x" * 2001}, "goal"),
        ({"knowledge": "x" * 20_001}, "knowledge"),
        ({"dataset": "x" * 201}, "dataset"),
        ({"steps": ["x"] * 1001}, "steps"),
        ({"steps": ["x" * 30_000, "x" * 10_001]}, "steps"),
        ({"steps": ["half an emoji \\ud83d"]}, "steps.0"),
        ({"resume": "x" * 201}, "resume"),
    ],
)
def test_a_session_is_opened_within_bounds(http, fields: dict, field: str):
    body = json.dumps(fields).replace("\\\\ud83d", "\\ud83d")
    answer = http.post("/v1/sessions", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, refused(answer)["field"]) == (422, field)
    assert len(refused(answer)["message"]) < 300


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"seq": 2**53 + 1}, "seq"),
        ({"seq": -1}, "seq"),
        ({"pts": 1.7976931348623157e308}, "pts"),
        ({"pts": 1e9 + 1}, "pts"),
        ({"pts": -0.1}, "pts"),
    ],
)
def test_a_frame_has_numbers_within_bounds(http, fields: dict, field: str):
    path = f"/v1/sessions/{open_session(http, thresholds=NEVER)}"
    sent = frame(0) | fields
    for answer in (
        http.post(f"{path}/frames", json=sent),
        http.post(f"{path}/frames", json={"frames": [sent]}),
        http.post(f"{path}/frames", content=picture(0), params=fields, headers={"content-type": "image/png"}),
    ):
        assert (answer.status_code, refused(answer)["field"].rpartition(".")[2]) == (422, field)
    assert http.get(path).json()["next_seq"] == 0


def test_a_text_and_a_number_of_frames_have_bounds(http):
    path = f"/v1/sessions/{open_session(http)}"
    assert refused(http.post(f"{path}/text", json={"text": "x" * 4001}))["field"] == "text"
    assert refused(http.post(f"{path}/frames", json={"frames": [frame(0)] * 257}))["field"] == "frames"
    assert refused(http.patch(f"{path}/state", json={"state": {"S" + "1" * 5000: "completed"}}))["field"] == "state"


def test_a_body_without_end_is_not_read_to_its_end(http):
    read = []

    def body() -> Iterator[bytes]:
        for _ in range(100):
            read.append(2**20)
            yield bytes(2**20)

    path = f"/v1/sessions/{open_session(http)}/frames"
    for kind in ("image/png", "application/json"):
        answer = http.post(path, content=body(), headers={"content-type": kind})
        assert (answer.status_code, refused(answer)["code"]) == (413, "too_large")
    answer = http.post("/v1/sessions", content=body(), headers={"content-type": "application/json"})
    assert (answer.status_code, refused(answer)["code"]) == (413, "too_large")


def test_more_pixels_than_a_camera_has_are_refused_before_they_are_unpacked(http):
    file = io.BytesIO()
    Image.new("1", (8000, 2001)).save(file, "PNG")
    path = f"/v1/sessions/{open_session(http)}/frames"
    answer = http.post(path, content=file.getvalue(), headers={"content-type": "image/png"})
    assert (answer.status_code, refused(answer)["field"]) == (422, "image")
    assert "8000x2001 is larger than 16000000 pixels" in refused(answer)["message"]
