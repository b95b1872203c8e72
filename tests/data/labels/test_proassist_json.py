"""ProAssist JSON with the `dst` key, as labelling writes it: another program's reader finds the same dialogue."""

import json
from pathlib import Path

from prospect.data.labels.proassist import to_proassist
from prospect.data.sources import DataSettings, load_dialogues
from prospect.dialogue.schema import Dialogue, Step, TimedTransition, Turn


def tea(**changes: object) -> Dialogue:
    return Dialogue(
        **{
            "dataset": "kitchen",
            "video_id": "v1",
            "dialogue_id": "talk_some_0",
            "user_type": "talk_some",
            "split": "train",
            "goal": "Make tea",
            "knowledge": "Make tea\n1. boil water\n2. add sugar\n3. add a bag",
            "steps": (
                Step(id="S1", name="boil water", start=1.0, end=4.0, confidence=0.75, source="aligner"),
                Step(id="S2", name="add sugar", performed=False, source="aligner"),
                Step(id="S3", name="add a bag", start=4.0, end=20.0, confidence=1.0, source="aligner"),
            ),
            "turns": (
                Turn(role="user", time=1.0, text="Hi"),
                Turn(role="assistant", time=4.0, text="Add a bag.", labels="initiative|instruction", progress="4 s"),
            ),
        }
        | changes
    )


def read_back(folder: Path, *dialogues: Dialogue) -> list[Dialogue]:
    (folder / "train.json").write_bytes(b"".join(to_proassist(dialogues)))
    corpus = load_dialogues(DataSettings(source="proassist_dst", path=folder / "train.json", videos=folder))
    assert corpus.quarantined == []
    return corpus.dialogues


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    assert read_back(tmp_path, tea()) == [tea()]


def test_conversations_of_one_video_are_numbered(tmp_path: Path) -> None:
    ids = ("talk_some_0", "talk_some_1", "talk_some_2")
    written = [tea(dialogue_id=name, goal=name) for name in ids]
    assert tuple(dialogue.dialogue_id for dialogue in read_back(tmp_path, *written)) == ids


def test_stated_transitions_become_updates_in_the_conversation(tmp_path: Path) -> None:
    recipe = tuple(Step(id=f"S{n}", name=name, source="recipe") for n, name in enumerate(("boil", "pour"), 1))
    stated = (TimedTransition(time=2.0, step=0, kind="start"), TimedTransition(time=5.0, step=1, kind="start"))
    knowledge = "Tea\n1. boil\n2. pour"
    live = tea(steps=recipe, knowledge=knowledge, explicit_transitions=stated)
    assert read_back(tmp_path, live) == [live]


def test_a_recipe_that_is_no_numbered_text_is_numbered(tmp_path: Path) -> None:
    [dialogue] = read_back(tmp_path, tea(knowledge=""))
    assert dialogue.step_names == tea().step_names


def test_one_row_a_step_as_the_format_has_it() -> None:
    [record] = json.loads(b"".join(to_proassist([tea()])))
    assert record["dst"][0] == {
        "type": "step",
        "id": "S1",
        "start_ts": 1.0,
        "end_ts": 4.0,
        "name": "boil water",
        "confidence": 0.75,
        "source": "aligner",
    }
    assert record["metadata"] == {"conversation_index": 0, "user_type": "talk_some_dst_enhanced"}
