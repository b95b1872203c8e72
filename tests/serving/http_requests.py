"""Requests that the tests of HTTP share."""

from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from prospect.monitoring import Readings
from prospect.protocol.messages import FrameAppend
from tests.serving.models import STEPS, picture


def local_client(api: FastAPI, **options: Any) -> TestClient:
    """A client in this process, which calls the server by a name that it answers to."""
    return TestClient(api, headers={"host": "127.0.0.1"}, **options)


def open_session(http: TestClient, **fields: object) -> str:
    answer = http.post("/v1/sessions", json={"goal": "Make tea", "steps": STEPS, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()["session_id"]


def frame(seed: int, **fields: object) -> dict:
    return FrameAppend(image=picture(seed), **fields).model_dump(mode="json", exclude_none=True)


def numbers(readings: Readings) -> dict[str, float]:
    """What a process has to tell an operator, by metric and label; of a histogram the sum."""
    return {f"{each.metric.name} {each.label}".strip(): sum(each.values) for each in readings.take()}


def refused(answer) -> dict:
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"code", "message", "field"}
    return answer.json()["error"]
