"""Token buckets: what passes in any stretch of time, and who is never refused."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prospect.errors import SessionError
from prospect.serving.access.limits import BURST_S, KeyLimits, TokenBucket, check_num_sessions
from prospect.serving.settings import KeySettings

RATES = st.floats(0.1, 1e4)
SENT = st.lists(st.tuples(st.floats(0, 60), st.floats(0.01, 1e5)), min_size=1, max_size=60)
"""(seconds since the one before, tokens)."""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(rate=RATES, burst=st.floats(0.1, 100), sent=SENT)
def test_over_any_time_no_more_passes_than_the_rate_a_burst_and_one_message(
    rate: float, burst: float, sent: list[tuple[float, float]]
) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, rate * burst, clock)
    passed: list[tuple[float, float]] = []
    for pause, tokens in sent:
        clock.now += pause
        if not bucket.wait():
            bucket.take(tokens)
            passed.append((clock.now, tokens))
    for first in range(len(passed)):
        for until, total in zip(
            (at for at, _ in passed[first:]), accumulate(tokens for _, tokens in passed[first:]), strict=True
        ):
            largest = max(tokens for at, tokens in passed[first:] if at <= until)
            assert total <= (rate * (burst + until - passed[first][0]) + largest) * (1 + 1e-6)


@given(rate=RATES, num=st.integers(1, 200))
def test_who_sends_at_the_rate_is_never_refused(rate: float, num: int) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, rate * BURST_S, clock)
    for _ in range(num):
        assert not bucket.wait()
        bucket.take(rate / 2)  # as two frames a second do
        clock.now += 0.5


@given(rate=RATES, tokens=st.floats(0.01, 1e5))
def test_who_waits_as_long_as_told_may_send_again(rate: float, tokens: float) -> None:
    clock = Clock()
    bucket = TokenBucket(rate, rate, clock)
    bucket.take(rate + tokens)
    wait = bucket.wait()
    assert wait > 0
    clock.now += wait * (1 + 1e-6) + 1e-6
    assert not bucket.wait()


def test_what_is_refused_costs_nothing() -> None:
    clock = Clock()
    limits = KeyLimits(KeySettings(max_messages_per_s=1, max_bytes_per_s=100), clock)
    assert not limits.spend(1, 1500), "the last message may be larger than what is left"
    told = [limits.spend(1, 10**6) for _ in range(5)]
    assert told == [pytest.approx(5)] * 5
    clock.now += 5.01
    assert not limits.spend(1, 1)


def test_both_limits_hold_and_null_is_none() -> None:
    clock = Clock()
    few = KeyLimits(KeySettings(max_messages_per_s=1, max_bytes_per_s=None), clock)
    assert [bool(few.spend(1, 10**9)) for _ in range(11)] == [False] * 10 + [True]
    unlimited = KeyLimits(KeySettings(max_messages_per_s=None, max_bytes_per_s=None), clock)
    assert not any(unlimited.spend(10**6, 10**12) for _ in range(100))


def test_the_sessions_of_a_key_are_counted_among_all() -> None:
    there = ["k.a", "k.b", "other.a", "kitchen-7"]
    check_num_sessions(there, "k", 3)
    check_num_sessions(there, "k", None)
    check_num_sessions(there, None, 1)
    with pytest.raises(SessionError, match="2 sessions of this key are open"):
        check_num_sessions(there, "k", 2)
