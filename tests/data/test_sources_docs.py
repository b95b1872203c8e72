"""The examples of docs/data.md are what the readers read."""

import re
from pathlib import Path

import pytest

from prospect.data.sources import READERS, DataSettings, load_dialogues, place_all

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+) (\w+)(?: (\S+))?\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
EXAMPLES = [block for block in BLOCKS if block[1] in READERS]


def test_every_reader_has_an_example_and_a_row_in_the_table() -> None:
    assert {source for _, source, _, _ in EXAMPLES} == READERS.keys()
    for source, reader in READERS.items():
        patterns = ", ".join(f"`{pattern}`" for pattern in reader.patterns)
        assert re.search(rf"^\| `{source}` \|.*{re.escape(patterns)}", DOCUMENT, flags=re.MULTILINE)


def test_every_setting_is_explained() -> None:
    explained = set(re.findall(r"^\| `data\.(\w+)` \|", DOCUMENT, flags=re.MULTILINE))
    assert explained == DataSettings.model_fields.keys()


@pytest.mark.parametrize(("suffix", "source", "place", "text"), EXAMPLES, ids=[source for _, source, _, _ in EXAMPLES])
def test_an_example_reads_without_loss(tmp_path: Path, suffix: str, source: str, place: str, text: str) -> None:
    file = tmp_path / (place or f"example.{suffix}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    corpus = load_dialogues(DataSettings(source=source, path=tmp_path if place else file))
    assert corpus.dialogues
    assert not corpus.quarantined
    placed, quarantined = place_all(corpus.dialogues, lambda _: None)
    assert any(timeline.events for _, timeline in placed)
    assert not quarantined
