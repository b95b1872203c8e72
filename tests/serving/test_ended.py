"""Sessions that are over: an id may be used again before the end of the first session is written."""

from types import SimpleNamespace

from prospect.serving.ended import EndedStreams


def test_two_sessions_of_one_id_close_at_once():
    ended = EndedStreams()
    first, second = (SimpleNamespace(session_id="a", touched=0.0) for _ in range(2))
    earlier, later = ended.closing(first), ended.closing(second)
    earlier.__enter__()
    later.__enter__()
    earlier.__exit__(None, None, None)
    assert ended.is_closing("a")
    later.__exit__(None, None, None)
    assert not ended.is_closing("a")
    assert ended.get("a") is second
