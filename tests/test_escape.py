"""Any text becomes a legal name, and is found again from it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name

from prospect.escape import folder_name, folder_text, metric_part, metric_text

TEXTS = st.text(st.characters(), min_size=1, max_size=40)
"""Lone surrogates too, which no file system takes as they are."""


@given(TEXTS)
def test_a_metrics_part_is_legal_wherever_it_stands_and_leads_back(text: str) -> None:
    part = metric_part(text)
    assert metric_text(part) == text
    for name in (f"train/{part}/videos", f"validation/speak_threshold_{part}"):
        _validate_metric_name(name)


@given(TEXTS.filter(lambda text: text.encode(errors="replace").decode() == text))
def test_a_folders_name_is_one_folder_and_leads_back(text: str) -> None:
    name = folder_name(text)
    assert folder_text(name) == text
    assert Path("root", name).name == name
    assert Path("root", name).parent == Path("root")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("ego4d_goalstep", "ego4d_goalstep"),
        ("kitchen (2024)", "kitchen :28:2024:29:"),
        ("A&B", "A:26:B"),
        ("a/b", "a:2f:b"),
        ("..", ":2e::2e:"),
        ("10:30", "10:3a:30"),
        ("Küche", "Küche"),
    ],
)
def test_a_name_of_letters_stays_as_it_is(text: str, part: str) -> None:
    assert metric_part(text) == part
