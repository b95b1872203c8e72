"""Cuts of dialogues are kept by everything that they depend on, and made in any process."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from prospect.cluster import cutting
from prospect.cluster.cutting import cut_clips
from prospect.data import cuts
from prospect.data.cuts import Found, Placed, find_all, make_clips
from prospect.data.settings import ClipSettings
from prospect.dialogue.sequence import SequenceBuilder
from prospect.dialogue.vocabulary import Vocabulary
from prospect.model.tokenizer import fit_tokenizer
from tests.factories import CONTEXT, timeline_of, tiny_vocabulary, toy_dialogue, with_progress

PLACED: list[Placed] = [(dialogue, timeline_of(dialogue)) for dialogue in map(toy_dialogue, range(12))]
CLIPS = ClipSettings(random_start_share=1.0)
VOCABULARY = tiny_vocabulary()


def builder(tokens_per_frame: int = 1, **context: Any) -> SequenceBuilder:
    return SequenceBuilder(VOCABULARY, CONTEXT.model_copy(update=context), tokens_per_frame)


class Counter:
    """Finds cuts, and counts the dialogues that it is asked about."""

    def __init__(self, builder: SequenceBuilder, clips: ClipSettings) -> None:
        self._rules, self.asked = (builder, clips), 0

    def __call__(self, placed: Sequence[Placed]) -> Iterable[Found]:
        self.asked += len(placed)
        return find_all(*self._rules, placed)


def asked(folder: Path, placed: list[Placed], builder: SequenceBuilder, clips: ClipSettings) -> int:
    """How many dialogues are cut anew; the clips are the same as without keeping anything."""
    find = Counter(builder, clips)
    assert make_clips(placed, builder, clips, folder, find) == make_clips(placed, builder, clips)
    return find.asked


@pytest.mark.parametrize("clips", [CLIPS, ClipSettings(summaries=True, summary_share=1.0)])
def test_a_second_time_nothing_is_cut(clips: ClipSettings, tmp_path: Path) -> None:
    placed = [(with_progress(dialogue), timeline_of(with_progress(dialogue))) for dialogue, _ in PLACED]
    assert asked(tmp_path, placed, builder(), clips) == 12
    assert asked(tmp_path, placed, builder(), clips) == 0
    assert asked(tmp_path, placed[::-1], builder(), clips) == 0, "in another order"
    assert asked(tmp_path, placed[:5], builder(), clips) == 0


def test_a_changed_dialogue_is_cut_anew_and_no_other(tmp_path: Path) -> None:
    asked(tmp_path, PLACED, builder(), CLIPS)
    renamed = PLACED[3][0].model_copy(update={"goal": "make coffee"})
    longer = PLACED[5][0].model_copy(update={"duration": 40.0})
    changed = [*PLACED]
    changed[3], changed[5] = (renamed, timeline_of(renamed)), (longer, timeline_of(longer))
    assert asked(tmp_path, changed, builder(), CLIPS) == 2


@pytest.mark.parametrize(
    ("other", "clips"),
    [
        (builder(max_seq_len=CONTEXT.max_seq_len // 2), CLIPS),
        (builder(tokens_per_frame=5), CLIPS),
        (builder(layout=1), CLIPS),
        (builder(), ClipSettings(random_start_share=1.0, seed=1)),
        (builder(), ClipSettings(random_start_share=1.0, draws=1)),
    ],
)
def test_other_rules_cut_everything_anew(other: SequenceBuilder, clips: ClipSettings, tmp_path: Path) -> None:
    asked(tmp_path, PLACED, builder(), CLIPS)
    assert asked(tmp_path, PLACED, other, clips) == 12


def test_another_tokenizer_and_another_version_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(tmp_path, PLACED, builder(), CLIPS)
    other = SequenceBuilder(Vocabulary(fit_tokenizer(["quite another text"], 512)), CONTEXT, 1)
    assert asked(tmp_path, PLACED, other, CLIPS) == 12
    monkeypatch.setattr(cuts, "_code_hash", lambda: "another version")
    assert asked(tmp_path, PLACED, builder(), CLIPS) == 12


def test_what_cannot_be_cut_is_tried_again(tmp_path: Path) -> None:
    tight = builder(max_seq_len=60)
    for _ in range(2):
        clips, quarantined = make_clips(PLACED, tight, CLIPS, tmp_path)
        assert (len(clips), len(quarantined)) == (0, 12)
        assert quarantined[0].field == "context.max_seq_len"


def test_tasks_of_a_cluster_give_the_same_clips_in_the_same_order(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds in ("PROBE_S", "WORTH_S", "PROGRESS_S", "TASK_S"):
        monkeypatch.setattr(cutting, seconds, 0.0)
    lines: list[str] = []
    found = cut_clips(PLACED, builder(), CLIPS, tmp_path, lines.append)
    assert found == make_clips(PLACED, builder(), CLIPS)
    assert [line.split(",")[0] for line in lines] == [
        f"train  {done}/12 dialogues cut into clips" for done in range(2, 13)
    ]
    lines.clear()
    assert cut_clips(PLACED, builder(), CLIPS, tmp_path, lines.append) == found
    assert not lines
