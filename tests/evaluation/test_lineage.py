"""What an evaluation says of itself: which videos, seen or not, told or not."""

from dataclasses import replace

import pytest

from prospect.dialogue.prompt import ContextSettings
from prospect.dialogue.schema import Dialogue
from prospect.evaluation.lineage import TRAINED_ON, Lineage, is_told, seen_videos
from tests.factories import toy_dialogue

LINEAGE = Lineage(
    model="models:/dst/1",
    weights="w",
    split="test",
    records="r",
    embeddings="e",
    videos=23,
    dialogues=40,
    missing=(),
    seen=(),
    told=False,
    rules={"context": {"strategy": "state_refresh"}},
)


def of(dataset: str, video_id: str) -> Dialogue:
    return toy_dialogue(0).model_copy(update={"dataset": dataset, "video_id": video_id})


def test_a_video_is_seen_by_its_recording_and_not_by_its_name_alone() -> None:
    manifest = {TRAINED_ON: ["assembly101/assembly_9011-a__e1", "home/tea"]}
    held = [of("assembly101", "assembly_9011-a__e4"), of("work", "tea"), of("home", "tea"), of("home", "soup")]
    assert seen_videos(manifest, held) == ("assembly101/assembly_9011-a__e4", "home/tea")
    assert seen_videos(manifest, held[1:2]) == ()
    assert seen_videos({}, held) is None, "an earlier model lists none"


@pytest.mark.parametrize(
    ("change", "mark", "obstacle"),
    [
        ({}, None, None),
        ({"told": True}, "told the reference's state", "it was told"),
        ({"seen": None}, "unknown whether", "does not say which videos"),
        ({"seen": ("a/1", "a/2", "a/3", "a/4")}, "trained on 4 of these videos (a/1, a/2, a/3, ...)", "trained on 4"),
        ({"missing": ("a/9",)}, "1 video without an embedding: not scored (a/9)", None),
    ],
)
def test_what_a_reader_has_to_know_stands_beside_the_score_and_bars_what_it_must(
    change: dict[str, object], mark: str | None, obstacle: str | None
) -> None:
    lineage = replace(LINEAGE, **change)
    assert [*lineage.marks()] == [] if mark is None else mark in next(lineage.marks())
    assert lineage.obstacle is None if obstacle is None else obstacle in str(lineage.obstacle)


def test_a_score_says_how_many_of_the_held_out_videos_it_is_of() -> None:
    assert (LINEAGE.count, replace(LINEAGE, missing=("a/9",)).count) == ("23 videos", "23 of 24 videos")


def test_an_evaluation_is_the_same_under_another_name_and_another_by_any_rule() -> None:
    assert replace(LINEAGE, model="models:/dst@candidate").key == LINEAGE.key
    others = [{"weights": "x"}, {"split": "validation"}, {"records": "x"}, {"embeddings": "x"}, {"rules": {}}]
    assert len({replace(LINEAGE, **other).key for other in others} | {LINEAGE.key}) == len(others) + 1


def test_only_the_published_way_of_summaries_is_told_the_state() -> None:
    told = [
        (strategy, published)
        for strategy in ("summarize_with_dst", "summarize_and_drop", "state_refresh")
        for published in (True, False)
        if is_told(ContextSettings(strategy=strategy, published=published))
    ]
    assert told == [("summarize_with_dst", True)]
