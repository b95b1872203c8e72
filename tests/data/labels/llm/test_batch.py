"""Mapping by the Batch API: rounds of files, and a driver that may die at any moment."""

import json
from pathlib import Path

import pytest

from prospect.data.labels.llm.batch import BatchError
from prospect.data.labels.llm.mapping import map_videos
from prospect.data.labels.llm.settings import LLMSettings
from prospect.llm.errors import EndpointError
from tests.data.labels.llm.videos import mapping, mapping_killed_when_hanging, request
from tests.llm.misbehaving import KEY, Absent, Hang, Says, Status

RIGHT = (0, 1, 2, 2, 2)


@pytest.fixture
def settings(settings: LLMSettings) -> LLMSettings:
    return settings.model_copy(update={"mode": "batch"})


def run(settings: LLMSettings, root: Path, *goals: str, **changes):
    return map_videos([request(goal) for goal in goals], settings.model_copy(update=changes), str(root))


def submissions(root: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in (root / "labels/llm/batches").glob("*.json")]


def test_one_batch_for_all_and_nothing_the_second_time(server, settings, tmp_path):
    server.statuses = ["validating", "in_progress", "finalizing", "completed"]
    report = run(settings, tmp_path, "tea", "soup", "cake")
    assert [result.assignment for result in report.results] == [RIGHT] * 3
    assert (report.spent.requests, report.spent.input_tokens) == (3, 300)
    assert len(server.batches) == 1
    assert [submission["status"] for submission in submissions(tmp_path)] == ["completed"]
    again = run(settings, tmp_path, "soup", "tea")
    assert (again.spent.requests, again.cached.requests, len(server.batches)) == (0, 2, 1)


def test_what_is_wrong_goes_into_the_next_round_with_its_reason(server, settings, tmp_path):
    server.plan["tea"] = [Says(mapping(S1="B1")), Says("no")]
    server.plan["soup"] = [Status(500)]
    server.plan["cake"] = [Absent()]
    server.plan["rice"] = [Says("no")] * 9
    report = run(settings, tmp_path, "tea", "soup", "cake", "rice", "toast")
    tea, soup, cake, rice, toast = report.results
    assert [r.assignment for r in (tea, soup, cake, toast)] == [RIGHT] * 4
    assert [r.attempts for r in report.results] == [3, 2, 2, 4, 1]
    assert rice.outcome == "quarantine"
    assert rice.reason.startswith("4 answers were no mapping, the last because: The answer is not valid JSON")
    assert len(server.batches) == 4
    assert "missing: B2" in server.asked("tea")[1]["messages"][3]["content"]
    assert "not valid JSON" in server.asked("tea")[2]["messages"][5]["content"]
    assert report.failures == {"missing": 1, "json": 5, "no answer": 2}


def test_lines_that_stay_without_an_answer_cost_their_video(server, settings, tmp_path):
    server.plan["tea"] = [Status(500)] * 3
    server.plan["soup"] = [Status(400, error={"message": "too long", "code": "context_length_exceeded"})]
    tea, soup, cake = run(settings, tmp_path, "tea", "soup", "cake").results
    assert (tea.outcome, tea.reason, tea.attempts) == ("quarantine", "the endpoint gave no answer: HTTP 500 (no)", 3)
    assert (soup.outcome, soup.attempts) == ("quarantine", 1)
    assert cake.outcome == "mapped"


def test_large_sets_are_several_batches(server, settings, tmp_path):
    report = run(settings, tmp_path, *map(str, range(5)), batch_size=2)
    assert all(result.assignment == RIGHT for result in report.results)
    assert len(server.batches) == 3


def test_an_expired_batch_is_an_error_that_keeps_what_was_answered(server, settings, tmp_path):
    server.statuses = ["in_progress", "expired"]
    server.plan["soup"] = [Hang()]
    with pytest.raises(BatchError, match=r"Batch batch_0 at .* expired with 1 of 2 requests answered, .*: run again"):
        run(settings, tmp_path, "tea", "soup")
    server.statuses = ["completed"]
    report = run(settings, tmp_path, "tea", "soup")
    assert [result.assignment for result in report.results] == [RIGHT] * 2
    assert [len(server.asked(goal)) for goal in ("tea", "soup")] == [1, 2]


def test_a_failed_batch_is_an_error_with_its_reason(server, settings, tmp_path):
    server.statuses = ["failed"]
    with pytest.raises(BatchError, match=r"Batch batch_0 at .* failed \(Line 1 is bad\) with 0 of 1 requests answered"):
        run(settings, tmp_path, "tea")
    server.statuses = ["completed"]
    assert run(settings, tmp_path, "tea").results[0].assignment == RIGHT


def test_an_unknown_model_stops_the_run_after_all_lines_are_kept(server, settings, tmp_path):
    server.plan["tea"] = [Status(404, error={"message": "no such model"})]
    with pytest.raises(EndpointError, match=r"HTTP 404 \(no such model\)"):
        run(settings, tmp_path, "tea", "soup")
    assert run(settings, tmp_path, "soup").results[0].cached


def test_a_driver_killed_while_it_waits_waits_for_the_same_batch(server, settings, tmp_path):
    server.statuses = ["in_progress"]
    mapping_killed_when_hanging(server, settings, tmp_path, "tea", "soup")
    server.statuses = ["in_progress", "completed"]
    report = run(settings, tmp_path, "tea", "cake")
    assert [result.assignment for result in report.results] == [RIGHT] * 2
    assert [body["messages"][1]["content"].split("\n")[0] for body in server.bodies] == [
        "Goal: tea", "Goal: soup", "Goal: cake"]  # fmt: skip
    assert len(server.batches) == 2
    assert run(settings, tmp_path, "soup").results[0].cached


def test_a_driver_killed_before_it_knows_the_batch_finds_it(server, settings, tmp_path):
    server.create_hangs = True
    mapping_killed_when_hanging(server, settings, tmp_path, "tea")
    [submission] = submissions(tmp_path)
    assert submission["batch_id"] == ""
    server.create_hangs = False
    assert run(settings, tmp_path, "tea").results[0].assignment == RIGHT
    assert len(server.batches) == 1


def test_a_driver_killed_before_the_batch_was_made_submits_it(server, settings, tmp_path):
    server.create_hangs = True
    mapping_killed_when_hanging(server, settings, tmp_path, "tea")
    server.create_hangs = False
    server.batches.clear()
    assert run(settings, tmp_path, "tea").results[0].assignment == RIGHT
    assert sorted(submission["status"] for submission in submissions(tmp_path)) == ["completed", "unmade"]


def test_a_batch_that_the_endpoint_forgot_is_named(server, settings, tmp_path):
    server.statuses = ["in_progress"]
    mapping_killed_when_hanging(server, settings, tmp_path, "tea")
    server.batches.clear()
    with pytest.raises(BatchError, match=r"does not know batch batch_0 any more: delete .*batches/.*\.json"):
        run(settings, tmp_path, "tea")


def test_a_wrong_key_stops_before_anything_is_submitted(server, settings, tmp_path, monkeypatch):
    monkeypatch.setenv(settings.api_key_env, "sk-wrong-0123456789")
    with pytest.raises(EndpointError, match="HTTP 401"):
        run(settings, tmp_path, "tea")
    assert not server.batches


def test_the_key_is_written_nowhere(server, settings, tmp_path):
    server.plan["tea"] = [Status(500, error={"message": f"key {KEY}"}), Says(KEY)]
    assert run(settings, tmp_path, "tea").results[0].outcome == "mapped"
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any(KEY in text for text in written)
