"""What a machine lacks skips a test in one line, and is a failure where it was said to be there."""

import pytest

from tests import conftest, needs
from tests.needs import ADVICE, need_of, reason, required, skip_without


def skipped(told: str) -> pytest.TestReport:
    longrepr = ("tests/test_x.py", 3, f"Skipped: {told}")
    return pytest.TestReport("tests/test_x.py::test", ("tests/test_x.py", 3, "test"), {}, "skipped", longrepr, "call")


def reported(report: pytest.TestReport) -> pytest.TestReport:
    """As the hook hands a report on."""
    hook = conftest.pytest_runtest_makereport()
    next(hook)
    with pytest.raises(StopIteration) as end:
        hook.send(report)
    return end.value.value


@pytest.mark.parametrize("need", ADVICE)
def test_a_skip_says_what_to_do(need: str) -> None:
    with pytest.raises(pytest.skip.Exception, match=f"needs {need}: {ADVICE[need]}"):
        skip_without(need, None)
    assert need_of(skipped(reason(need))) == need
    skip_without(need, True)


@pytest.mark.parametrize(("there", "names"), [(True, {"data", "root"}), (False, {"root"})])
def test_data_are_required_where_their_folder_is(there: bool, names: set[str], tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(needs, "DATA", tmp_path if there else tmp_path / "none")
    assert required("root, data-if-there") == names
    assert required("data") == {"data"}


def test_what_is_required_and_lacks_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest, "REQUIRED", frozenset({"chromium"}))
    assert reported(skipped(reason("cuda"))).outcome == "skipped"
    assert reported(skipped("for another reason")).outcome == "skipped"
    failed = reported(skipped(reason("chromium")))
    assert (failed.outcome, failed.longrepr) == (
        "failed",
        "PROSPECT_REQUIRE names chromium, and the test skipped: install chromium",
    )
