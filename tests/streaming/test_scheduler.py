"""Who runs in a step: frames before contexts before generated text, and nobody waits for ever."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from prospect.streaming.feeds import Feed
from prospect.streaming.scheduler import Job, Scheduler


def job(name: str, kind: str, num_tokens: int) -> Job:
    return Job(name, run=None, table=None, feed=Feed([0] * num_tokens, kind=kind))


def test_frames_come_first_then_contexts_in_chunks_then_text():
    jobs = [job("text", "text", 1), job("context", "context", 100), job("frame", "frame", 3)]
    chosen = Scheduler(step_tokens=20, chunk_tokens=16, patience=2).choose(jobs)
    assert [(job.session_id, count) for job, count in chosen] == [("frame", 3), ("context", 16), ("text", 1)]
    chosen = Scheduler(step_tokens=5, chunk_tokens=16, patience=2).choose(jobs)
    assert [(job.session_id, count) for job, count in chosen] == [("frame", 3), ("context", 2)]


@given(st.lists(st.sampled_from(["frame", "context", "text"]), min_size=1, max_size=12), st.integers(1, 6))
@settings(deadline=None)
def test_under_any_load_everybody_gets_a_turn(kinds, step_tokens):
    """Every job has more to feed at once, as in saturation."""
    jobs = [job(str(index), kind, 10_000) for index, kind in enumerate(kinds)]
    scheduler = Scheduler(step_tokens, chunk_tokens=1, patience=2)
    turns = Counter(job.session_id for _ in range(200) for job, _ in scheduler.choose(jobs))
    assert min(turns[job.session_id] for job in jobs) >= 200 * min(step_tokens / len(jobs), 1) / 3
