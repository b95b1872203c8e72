"""Who runs in a step: frames before contexts before generated text, and nobody waits for ever."""

from hypothesis import given, settings
from hypothesis import strategies as st

from prospect.streaming.runner.requests import Feed
from prospect.streaming.runner.scheduler import Job, Scheduler


def job(name: str, kind: str, num_tokens: int) -> Job:
    return Job(name, generator=None, table=None, feed=Feed([0] * num_tokens, kind=kind))


def test_frames_come_first_then_contexts_in_chunks_then_text():
    jobs = [job("text", "text", 1), job("context", "context", 100), job("frame", "frame", 3)]
    chosen = Scheduler(step_tokens=20, chunk_tokens=16, shared_tokens=16, patience=2).choose(jobs)
    assert [(job.session_id, count) for job, count in chosen] == [("frame", 3), ("context", 16), ("text", 1)]
    chosen = Scheduler(step_tokens=5, chunk_tokens=16, shared_tokens=16, patience=2).choose(jobs)
    assert [(job.session_id, count) for job, count in chosen] == [("frame", 3), ("context", 2)]


def test_long_feeds_share_little_of_a_step_in_which_others_run():
    """A user's long text belongs to a frame, and delays the frames of others no more than a context does."""
    scheduler = Scheduler(step_tokens=512, chunk_tokens=256, shared_tokens=64, patience=2)
    long = [job("context", "context", 1000), job("text", "frame", 3000)]
    ran = [{job.session_id: count for job, count in scheduler.choose([*long, job("frame", "frame", 8)])}]
    assert ran == [{"frame": 8, "text": 64}]
    for _ in range(9):
        ran.append({job.session_id: count for job, count in scheduler.choose([*long, job("frame", "frame", 8)])})
        assert ran[-1].pop("frame") == 8
        assert sum(ran[-1].values()) == 64
    assert {"context": 64} in ran, "neither waits for ever"
    assert {"text": 64} in ran
    assert {job.session_id: count for job, count in scheduler.choose(long)} == {"context": 256, "text": 256}


@given(contexts=st.integers(1, 20), texts=st.integers(0, 20))
@settings(deadline=None)
def test_whatever_else_waits_a_frame_waits_for_one_step_at_most(contexts, texts):
    """Long contexts and utterances without end; now and then a frame of another session comes."""
    jobs = [job(f"c{i}", "context", 10_000) for i in range(contexts)] + [job(f"t{i}", "text", 1) for i in range(texts)]
    scheduler = Scheduler(step_tokens=32, chunk_tokens=16, shared_tokens=32, patience=2)
    for time in range(40):
        frames = [job(f"f{i}", "frame", 4) for i in range(4 if time % 5 == 0 else 0)]
        ran = {job.session_id: count for job, count in scheduler.choose([*jobs, *frames])}
        assert all(ran[frame.session_id] == 4 for frame in frames)
        assert sum(ran.values()) == min(32, sum(min(job.num_left, 16) for job in frames + jobs))


@given(st.lists(st.sampled_from(["frame", "context", "text"]), min_size=1, max_size=12), st.integers(2, 6))
@settings(deadline=None)
def test_under_any_load_everybody_gets_a_turn(kinds, step_tokens):
    """Every job has more to feed at once, as in saturation."""
    jobs = [job(str(index), kind, 10_000) for index, kind in enumerate(kinds)]
    scheduler = Scheduler(step_tokens, chunk_tokens=1, shared_tokens=1, patience=2)
    for _ in range(200):
        scheduler.choose(jobs)
        assert max(job.waited for job in jobs) <= 2 * scheduler.patience + len(jobs) / (step_tokens // 2)
