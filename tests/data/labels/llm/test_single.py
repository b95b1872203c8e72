"""Mapping by chat completions, against a server that does everything a server can do wrong."""

import base64
import json
import os
import time
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote

import pytest
from pydantic import ValidationError
from rich.console import Console

from prospect.data.labels.llm.mapping import map_videos
from prospect.data.labels.llm.settings import LLMSettings
from prospect.errors import ConfigError, DataError
from prospect.llm.errors import EndpointError
from scripts.cluster import free_port
from tests.data.labels.llm.videos import mapping, mapping_killed_when_hanging, request
from tests.llm.misbehaving import KEY, KEY_VARIABLE, Hang, Raw, Reset, Says, Status, Trickle

RIGHT = (0, 1, 2, 2, 2)


def run(settings: LLMSettings, root: Path, *goals: str, **changes):
    return map_videos([request(goal) for goal in goals], settings.model_copy(update=changes), str(root))


def conversation(report, root: Path, index: int = 0) -> dict:
    return json.loads((root / "labels/llm" / f"{report.results[index].key}.json").read_text())


def test_a_video_is_asked_once_and_kept(server, settings, tmp_path):
    seen = []
    report = map_videos([request("tea")], settings, str(tmp_path), seen.append)
    [result] = report.results
    assert (result.video, result.outcome, result.assignment, result.attempts) == ("video of tea", "mapped", RIGHT, 1)
    assert seen == [result]
    assert (report.spent.requests, report.spent.input_tokens, report.spent.output_tokens) == (1, 100, 10)
    assert report.spent.cost == pytest.approx((100 * 2 + 10 * 8) / 1e6)
    assert report.cached.requests == 0

    again = run(settings, tmp_path, "tea")
    assert len(server.bodies) == 1
    assert again.results[0].cached
    assert again.results[0].assignment == RIGHT
    assert (again.spent.requests, again.spent.cost) == (0, 0)
    assert again.cached == report.spent


def test_the_request_shows_times_and_asks_for_ids_only(server, settings, tmp_path):
    run(settings, tmp_path, "tea", extra_body={"seed": 7}, max_tokens=None)
    [body] = server.bodies
    assert set(body) == {"model", "messages", "temperature", "seed"}
    system, user = body["messages"]
    assert '{"mapping": {"S1": ["B1", "B2"], "S2": ["B3"]}}' in system["content"]
    assert "Goal: tea\n\nSteps:\nS1: step 1\n" in user["content"]
    assert "\nB2 [10.0s-15.0s] line 1\n" in user["content"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Says("S1 is B1, and the rest follows."), "not valid JSON"),
        (Says('{"mapping": {"S1": ["B1",]}}'), "not valid JSON"),
        (Says('{"S1": ["B1"]}'), 'one key, "mapping"'),
        (Says(mapping(S1="B1", S2="B2", S3="B3 B4 B5 B6")), "do not exist: B6"),
        (Says(mapping(S1="B1 B2", S2="B2", S3="B3 B4 B5")), "more than once: B2"),
        (Says(mapping(S1="B1", S2="B2", S3="B3 B5")), "missing: B4"),
        (Says(mapping(S1="B1", S2="B3 B4 B5", S3="B2")), "B2 of S3 comes before B3 of S2"),
        (Says(mapping(S1="B1 B3", S2="B2", S3="B4 B5")), "not consecutive"),
        (Says(""), "answer was empty"),
        (Says('{"mapping": {"S1": ["B1', "length"), "cut off"),
    ],
)
def test_a_wrong_answer_is_asked_again_with_what_was_wrong(server, settings, tmp_path, answer, told):
    server.plan["tea"] = [answer]
    report = run(settings, tmp_path, "tea")
    assert report.results[0].assignment == RIGHT
    first, second = server.bodies
    assert second["messages"][:2] == first["messages"]
    assert second["messages"][2] == {"role": "assistant", "content": answer.text or "(no answer)"}
    assert told in second["messages"][3]["content"]
    wrong, right = conversation(report, tmp_path)["attempts"]
    assert wrong["answer"]["text"] == answer.text
    assert told in wrong["failures"][0]["feedback"]
    assert not right["failures"]
    assert sum(report.failures.values()) == 1


def test_prose_around_the_object_is_no_failure(server, settings, tmp_path):
    server.plan["tea"] = [Says(f"Here it is:\n```json\n{mapping(S1='B1 B2', S2='B3', S3='B4 B5')}\n```\nEnjoy.")]
    assert run(settings, tmp_path, "tea").results[0].assignment == (0, 0, 1, 2, 2)
    assert len(server.bodies) == 1


def test_three_retries_and_then_its_reason_for_good(server, settings, tmp_path):
    server.plan["tea"] = [Says(mapping(S1="B1"))] * 9
    report = run(settings, tmp_path, "tea", "soup")
    tea, soup = report.results
    assert (tea.outcome, tea.assignment, tea.attempts) == ("quarantine", None, 4)
    assert tea.reason.startswith(
        "4 answers were no mapping, the last because: These blocks are missing: B2, B3, B4, B5"
    )
    assert soup.outcome == "mapped"
    assert len(server.asked("tea")) == 4
    assert len(server.asked("tea")[3]["messages"]) == 2 + 3 * 2
    assert len(conversation(report, tmp_path)["attempts"]) == 4

    assert run(settings, tmp_path, "tea", on_failure="aligner").results[0].outcome == "aligner"
    assert len(server.asked("tea")) == 4
    server.plan["tea"] = []
    assert run(settings, tmp_path, "tea", max_retries=4).results[0].assignment == RIGHT
    assert len(server.asked("tea")) == 5


def test_retry_after_is_waited_for_by_all(server, settings, tmp_path):
    server.plan["tea"] = [Status(429, {"Retry-After": "0.8"})]
    report = run(settings, tmp_path, "tea", "soup", concurrency=1)
    assert [result.assignment for result in report.results] == [RIGHT, RIGHT]
    assert server.times[1] - server.times[0] >= 0.75
    assert report.failures == {"no answer": 1}
    assert conversation(report, tmp_path)["attempts"][0]["error"] == "HTTP 429 (no)"


def test_retry_after_may_be_a_date(server, settings, tmp_path):
    until = int(time.time()) + 3
    server.plan["tea"] = [Status(503, {"Retry-After": formatdate(until, usegmt=True)})]
    assert run(settings, tmp_path, "tea").results[0].outcome == "mapped"
    assert server.times[1] >= until - 0.05


def test_an_endpoint_with_a_narrow_limit_costs_time_and_no_video(server, settings, tmp_path):
    server.seconds_between = 0.1
    report = run(settings, tmp_path, *map(str, range(12)), concurrency=12, transport_retries=3)
    assert [result.outcome for result in report.results] == ["mapped"] * 12
    assert report.failures["no answer"] >= 11, "twelve came at once"


def test_an_endpoint_that_is_always_busy_is_given_up(server, settings, tmp_path):
    server.default = Status(429, {"Retry-After": "0.01"})
    report = run(settings, tmp_path, "tea", "soup")
    assert {result.reason for result in report.results} == {"the endpoint gave no answer: HTTP 429 (no)"}
    assert len(server.bodies) == 6


def test_a_wait_beyond_the_limit_stops_the_run(server, settings, tmp_path):
    server.plan["tea"] = [Status(429, {"Retry-After": "86400"})]
    with pytest.raises(EndpointError, match=r"asks to wait 86400 s, longer than `max_wait_s`.*run again later"):
        run(settings, tmp_path, "tea")


@pytest.mark.parametrize(
    "trouble", [Status(500), Status(503), Status(408), Reset(), Raw(b"<html>"), Raw(b'{"choices": []}')]
)
def test_a_passing_trouble_passes(server, settings, tmp_path, trouble):
    server.plan["tea"] = [trouble, trouble]
    report = run(settings, tmp_path, "tea")
    assert report.results[0].assignment == RIGHT
    assert report.results[0].attempts == 3
    errors = [attempt["error"] for attempt in conversation(report, tmp_path)["attempts"]]
    assert all(errors[:2])
    assert not errors[2]


@pytest.mark.parametrize("silence", [Hang(), Trickle()])
def test_no_answer_in_time_is_a_lost_request(server, settings, tmp_path, silence):
    server.plan["tea"] = [silence]
    report = run(settings, tmp_path, "tea", timeout_s=0.3)
    assert report.results[0].assignment == RIGHT
    assert conversation(report, tmp_path)["attempts"][0]["error"] == "no answer within 0.3 s"


def test_a_trouble_that_stays_costs_one_video_until_the_next_run(server, settings, tmp_path):
    server.plan["tea"] = [Status(500)] * 3
    report = run(settings, tmp_path, "tea", "soup")
    tea, soup = report.results
    assert (tea.outcome, tea.reason) == ("quarantine", "the endpoint gave no answer: HTTP 500 (no)")
    assert soup.outcome == "mapped"
    assert run(settings, tmp_path, "tea").results[0].attempts == 4


def test_an_endpoint_that_answers_nobody_stops_the_run(server, settings, tmp_path):
    server.default = Status(500)
    with pytest.raises(EndpointError, match="gave no answer for 3 videos in a row, the last time: HTTP 500"):
        run(settings, tmp_path, *map(str, range(10)), stop_after=3, concurrency=1)
    assert len(server.bodies) == 9


def test_a_request_that_is_too_long_costs_its_video_only(server, settings, tmp_path):
    error = {"message": "maximum context length is 4096", "code": "context_length_exceeded"}
    server.plan["tea"] = [Status(400, error=error)]
    tea, soup = run(settings, tmp_path, "tea", "soup").results
    assert "maximum context length" in tea.reason
    assert tea.attempts == 1
    assert soup.outcome == "mapped"


@pytest.mark.parametrize(
    ("status", "error", "sentence"),
    [
        (
            404,
            {"message": "The model `tiny` does not exist"},
            r"HTTP 404 \(The model `tiny` does not exist\); check `model`",
        ),
        (400, {"message": "'temperature' is not supported", "param": "temperature"}, "'temperature' is not supported"),
        (403, {"message": "not your region"}, "HTTP 403"),
        (429, {"message": "You exceeded your quota", "code": "insufficient_quota"}, "exceeded your quota"),
    ],
)
def test_what_no_request_can_survive_stops_the_run(server, settings, tmp_path, status, error, sentence):
    server.default = Status(status, error=error)
    with pytest.raises(EndpointError, match=sentence):
        run(settings, tmp_path, *map(str, range(20)), concurrency=2)
    assert len(server.bodies) <= 2


def test_a_wrong_key_stops_the_run_and_is_not_repeated(server, settings, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sk-wrong-0123456789")
    with pytest.raises(EndpointError, match=rf"HTTP 401 .*check the key in {KEY_VARIABLE}") as error:
        run(settings, tmp_path, "tea")
    assert "sk-wrong" not in str(error.value)


def test_nobody_listening_stops_the_run(settings, tmp_path):
    with pytest.raises(EndpointError, match=r"cannot be reached: .*check `base_url`"):
        run(settings, tmp_path, "tea", base_url=f"http://127.0.0.1:{free_port()}/v1")


def test_no_key_is_one_sentence_unless_nothing_is_asked(server, settings, tmp_path, monkeypatch):
    run(settings, tmp_path, "tea")
    monkeypatch.delenv(KEY_VARIABLE)
    assert run(settings, tmp_path, "tea").results[0].assignment == RIGHT
    with pytest.raises(ConfigError, match=rf"api_key_env: the environment variable {KEY_VARIABLE} is missing or blank"):
        run(settings, tmp_path, "soup")


def test_the_key_is_written_nowhere(server, settings, tmp_path, caplog, capfd):
    caplog.set_level("DEBUG")
    echo = {"message": f"your key {KEY} is busy"}
    server.plan["tea"] = [Status(500, error=echo), Says(f"Bearer {KEY}"), Raw(KEY.encode()), Status(500, error=echo)]
    report = run(settings, tmp_path, "tea")
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert report.results[0].outcome == "mapped"
    assert any("your key *** is busy" in text for text in written)
    for text in [*written, caplog.text, report.to_json(), str(settings), *capfd.readouterr()]:
        assert KEY not in text


def test_the_key_is_written_nowhere_in_another_spelling(server, settings, tmp_path):
    encoded = quote(base64.b64encode(KEY.encode()).decode())
    server.plan["tea"] = [Status(500, error={"message": encoded}), Raw(encoded.encode()), Says(encoded)]
    run(settings, tmp_path, "tea")
    written = "".join(file.read_text() for file in tmp_path.rglob("*.json"))
    assert "***" in written
    assert encoded.rstrip("=%3D") not in written


@pytest.mark.parametrize(
    "values",
    [{"api_key_env": KEY}, {"base_url": f"https://user:{KEY}@host/v1"}, {"base_url": f"https://host/v1?key={KEY}"}],
)
def test_a_key_in_the_configuration_is_refused(values):
    with pytest.raises(ValidationError, match="key") as error:
        LLMSettings(**values)
    assert KEY not in str(error.value)


def test_what_has_one_answer_or_none_is_not_asked(server, settings, tmp_path):
    videos = [request("one step", 1, 3), request("as many", 3, 3), request("too few", 4, 3), request("none", 0, 3)]
    results = map_videos(videos, settings, str(tmp_path)).results
    assert [result.assignment for result in results] == [(0, 0, 0), (0, 1, 2), None, None]
    assert results[2].reason == "3 blocks cannot give each of 4 steps one"
    assert results[3].reason == "there are no steps"
    assert not server.bodies


def test_equal_content_is_asked_once_and_other_content_anew(server, settings, tmp_path):
    report = run(settings, tmp_path, "tea", "tea", "soup")
    assert [result.assignment for result in report.results] == [RIGHT] * 3
    assert report.spent.requests == len(server.bodies) == 2
    run(settings, tmp_path, "tea", temperature=0.7)
    run(settings, tmp_path, "tea", model="large")
    assert len(server.bodies) == 4


def test_requests_are_spaced(server, settings, tmp_path):
    began = time.time()
    run(settings, tmp_path, *map(str, range(5)), requests_per_minute=600)
    assert len(server.times) == 5
    assert server.times[-1] - began >= 0.4, "whenever the first of them arrived"


def test_a_report_can_be_shown_and_read(server, settings, tmp_path):
    server.plan["tea"] = [Says("?"), Status(500)]
    report = run(settings, tmp_path, "tea", "soup")
    console = Console(width=120, record=True)
    console.print(report)
    assert "LLM mapping by tiny: 2 of 2 videos" in console.export_text()
    read = json.loads(report.to_json())
    assert (read["mapped"], read["failed"], read["failures"]) == (2, 0, {"json": 1, "no answer": 1})
    assert read["spent"] == {"requests": 4, "input_tokens": 300, "output_tokens": 30, "cost": pytest.approx(0.00084)}
    assert read["results"][0]["assignment"] == [*RIGHT]


def test_a_damaged_file_is_named(server, settings, tmp_path):
    report = run(settings, tmp_path, "tea")
    path = tmp_path / "labels/llm" / f"{report.results[0].key}.json"
    path.write_text("{")
    with pytest.raises(DataError, match=rf"{path} is not a conversation"):
        run(settings, tmp_path, "tea")


def test_the_root_may_be_a_url(server, settings):
    root = f"memory://labels-{os.getpid()}"
    assert map_videos([request("tea")], settings, root).spent.requests == 1
    assert map_videos([request("tea")], settings, root).cached.requests == 1


def test_killed_between_retries_it_goes_on_where_it_was(server, settings, tmp_path):
    settings = settings.model_copy(update={"concurrency": 1})
    server.plan["soup"] = [Says(mapping(S1="B1")), Status(500), Hang()]
    mapping_killed_when_hanging(server, settings, tmp_path, "tea", "soup", "cake")
    assert len(server.bodies) == 4

    report = run(settings, tmp_path, "tea", "soup", "cake")
    assert [result.assignment for result in report.results] == [RIGHT] * 3
    assert [len(server.asked(goal)) for goal in ("tea", "soup", "cake")] == [1, 4, 1]
    assert "missing: B2" in server.asked("soup")[3]["messages"][3]["content"]
    assert (report.cached.requests, report.spent.requests) == (3, 2)
    assert [result.cached for result in report.results] == [True, False, False]
