"""ProAssist's released tree: which files are read, under which names videos and features lie, and its whole size."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prospect.data.sources import Corpus, DataSettings, feature_files, load_dialogues
from prospect.errors import ConfigError, DataError
from tests.data.proassist_tree import LONGEST_EPIC, write_tree

TALK = {"user_type": "no_talk", "conversation": [{"role": "user", "time": 1.0, "content": "Hi"}]}
TOY = "nusar-2021_action_both_9011-c03f__HMC_84355350_mono10bit"


def video(uid: str, **more: Any) -> dict[str, Any]:
    return {"video_uid": uid, "conversations": [TALK], "parsed_video_anns": {"dataset": "named otherwise"}} | more


def prepared(uid: str, **metadata: Any) -> dict[str, Any]:
    conversation = [
        {"role": "system", "content": "You are a proactive assistant."},
        {"role": "frames", "start": 4, "end": 9},
        {"role": "assistant", "time": 4.5, "content": "Stir.", "progress": "The time elapsed is 4.5 s."},
        {"role": "frames", "start": 9, "end": 20},
    ]
    if metadata.get("has_summary"):
        conversation += [
            {"role": "system", "content": "Please summarize the progress."},
            {"role": "frames", "start": 20, "end": 21},
            {"role": "assistant", "content": "The time elapsed is 4.5 s."},
        ]
    line = {"dataset": "x", "video_uid": uid, "start_frame_idx": 4, "conversation": conversation}
    return line | {"end_frame_idx": conversation[-1].get("end", 21), "metadata": {"user_id": "no_talk_0"} | metadata}


def write(root: Path, place: str, *records: dict[str, Any]) -> None:
    file = root / place
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, records)) if place.endswith("l") else json.dumps(records)
    file.write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write(tmp_path, "wtag/generated_dialogs/train.json", video("T1"), video("T2"), video("T3"))
    write(tmp_path, "wtag/generated_dialogs/val.json", video("T4"), video("T5"))
    write(tmp_path, "wtag/generated_dialogs/val_filtered.json", video("T5"))
    write(tmp_path, "wtag/generated_dialogs/val_test_split.json", {"T4": ["val", "Cake"]})
    write(tmp_path, "ego4d/generated_dialogs/test.json", video("grp-e1"))
    write(tmp_path, "wtag/prepared/dialog-klg-sum_train_L4096_I1.jsonl", prepared("T1", has_summary=True))
    write(tmp_path, "wtag/prepared/dialog_val_L0_I5+SEP.jsonl", prepared("T4"))
    write(tmp_path, "wtag/prepared/summary_train_L4096_I1.jsonl", prepared("T1", has_summary=True, summary_only=True))
    return tmp_path


def load(tree: Path, **settings: Any) -> Corpus:
    return load_dialogues(DataSettings(source="proassist", path=tree, **settings))


def found(corpus: Corpus) -> list[tuple[str, str, str]]:
    return [(d.dataset, d.video_id, d.split) for d in corpus.dialogues]


def test_all_splits_of_all_data_sets_are_read_under_their_folders_names(tree: Path) -> None:
    assert found(load(tree)) == [
        ("ego4d", "grp-e1", "test"),
        ("wtag", "T1", "train"),
        ("wtag", "T2", "train"),
        ("wtag", "T3", "train"),
        ("wtag", "T4", "validation"),
        ("wtag", "T5", "validation"),
    ]


def test_data_sets_splits_suffix_and_rows_can_be_chosen(tree: Path) -> None:
    assert found(load(tree, suffix="_filtered")) == [("wtag", "T5", "validation")]
    assert [v for _, v, _ in found(load(tree, splits=("val", "test")))] == ["grp-e1", "T4", "T5"]
    assert [v for _, v, _ in found(load(tree, datasets=("wtag",), num_rows=1))] == ["T1", "T4"]
    assert found(load(tree, num_rows=0)) == []


def test_a_row_is_a_video_with_all_its_conversations(tree: Path) -> None:
    write(tree, "wtag/generated_dialogs/train.json", video("T1", conversations=[TALK, TALK]), video("T2"))
    corpus = load(tree, splits=("train",), num_rows=1)
    assert [d.dialogue_id for d in corpus.dialogues] == ["no_talk_0", "no_talk_1"]


def test_prepared_samples_are_chosen_by_kind_and_size(tree: Path) -> None:
    [clip] = load(tree, prepared="dialog_L0_I5+SEP").dialogues
    assert (clip.dataset, clip.video_id, clip.split, clip.last_frame) == ("wtag", "T4", "validation", 20)


def test_a_summary_at_a_clips_end_is_no_turn_and_its_frame_none_of_the_clips(tree: Path) -> None:
    [clip] = load(tree, prepared="dialog-klg-sum_L4096_I1").dialogues
    assert [turn.text for turn in clip.turns] == ["Stir."]
    assert (clip.first_frame, clip.last_frame) == (4, 20)
    assert (clip.progress, clip.summary, clip.summary_only) == (None, "The time elapsed is 4.5 s.", False)


def test_a_clip_that_is_there_for_its_summary_alone_has_nothing_that_the_assistant_says(tree: Path) -> None:
    line = prepared("T1", has_summary=True, summary_only=True, progress="2 s in.")
    write(tree, "wtag/prepared/summary_train_L4096_I1.jsonl", line, prepared("T2", has_summary=True))
    line["conversation"][-3:] = []
    write(tree, "wtag/prepared/summary_val_L4096_I1.jsonl", line | {"video_uid": "T4"})
    corpus = load(tree, prepared="summary_L4096_I1")
    [clip, other] = corpus.dialogues
    assert (clip.dialogue_id, clip.turns) == ("no_talk_0-summary", ())
    assert clip.summary_only > other.summary_only
    assert (clip.first_frame, clip.last_frame) == (4, 20)
    assert (clip.progress, clip.summary) == ("2 s in.", "The time elapsed is 4.5 s.")
    assert [(record.field, record.reason) for record in corpus.quarantined] == [
        ("metadata.has_summary", "no summary stands behind its request for one")
    ]


def test_narrations_are_said_when_their_frames_have_been_seen(tree: Path) -> None:
    line = prepared("T1") | {"metadata": None}
    del line["conversation"][2]["time"]
    write(tree, "ego4d/prepared/narration_train_L4096_I1.jsonl", line)
    [clip] = load(tree, prepared="narration_L4096_I1").dialogues
    assert [(turn.time, turn.text) for turn in clip.turns] == [(4.5, "Stir.")]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"datasets": ("ego5d",)},
            "data.datasets: 'ego5d' must be one of assembly101, ego4d, egoexolearn, epickitchens",
        ),
        ({"datasets": ("holoassist",)}, "holds no folder 'holoassist' with dialogues"),
        ({"datasets": ("ego4d",), "suffix": "_x"}, "ego4d/generated_dialogs holds none of train_x.json, val_x.json"),
        ({"suffix": "_x"}, "data.suffix"),
        ({"prepared": "dialog"}, "data.prepared: 'dialog' is not a kind and size, such as dialog-klg_L4096_I1"),
        ({"prepared": "dialog_L9_I1"}, "data.prepared"),
        ({"splits": ("fold3",)}, "data.splits: 'fold3' must be one of train, validation, test and val"),
    ],
)
def test_a_wrong_setting_is_one_sentence(tree: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ConfigError, DataError), match=re.escape(sentence)) as raised:
        load(tree, **settings)
    assert "\n" not in str(raised.value)


def test_frames_and_features_lie_under_the_files_name_not_the_ids(tmp_path: Path) -> None:
    uids = [f"assembly_{TOY}", f"disassembly_{TOY}"]
    write(tmp_path, "assembly101/generated_dialogs/train.json", *map(video, uids))
    write(tmp_path, "ego4d/generated_dialogs/train.json", video("grp-e1"), video("e2"))
    encoder = "google___siglip-so400m-patch14-384@-2"
    for dataset, stem in (("assembly101", TOY), ("ego4d", "e1")):
        for place in ("frames", f"features/{encoder}"):
            write(tmp_path, f"{dataset}/{place}/{stem}.arrow")
    corpus = load(tmp_path)
    toy, e1 = f"{tmp_path}/assembly101/frames/{TOY}.arrow", f"{tmp_path}/ego4d/frames/e1.arrow"
    assert corpus.videos == {uids[0]: toy, uids[1]: toy, "grp-e1": e1}
    assert corpus.missing_videos == ["e2"]

    settings = DataSettings(source="proassist", path=tmp_path)
    features = feature_files(settings, corpus.dialogues)
    assert features == {uid: path.replace("/frames/", f"/features/{encoder}/") for uid, path in corpus.videos.items()}
    (tmp_path / "ego4d" / "features" / "other").mkdir()
    assert feature_files(settings, corpus.dialogues[:2], encoder) == {uid: features[uid] for uid in uids}
    with pytest.raises(ConfigError, match=r"encoder: name one of google___siglip.*, other, the features in"):
        feature_files(settings, corpus.dialogues)
    (tmp_path / "assembly101" / "features").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="holds no <dataset>/features/<encoder>"):
        feature_files(settings.model_copy(update={"datasets": ("assembly101",)}), corpus.dialogues)


def test_raw_videos_are_found_where_the_data_sets_have_them(tmp_path: Path) -> None:
    recording, camera = TOY.split("__")
    uids = {"assembly101": f"assembly_{TOY}", "holoassist": "R1-GoPro", "wtag": "T1", "epickitchens": "P01_01"}
    for dataset, uid in uids.items():
        write(tmp_path, f"{dataset}/generated_dialogs/train.json", video(uid))
    places = (
        f"{recording}/{camera}.mp4",
        "R1-GoPro/Export_py/Video_pitchshift.mp4",
        "T1/Video/Video.mpeg",
        "P01_01.MP4",
    )
    for place in places:
        write(tmp_path, f"raw/{place}")
    write(tmp_path, "raw/R1-GoPro/Export_py/Video_compress.mp4")
    corpus = load(tmp_path, videos=tmp_path / "raw")
    assert corpus.videos == dict(zip(uids.values(), (f"{tmp_path}/raw/{place}" for place in places), strict=True))


def test_a_twentieth_of_the_release_is_read_without_a_loss(tmp_path: Path) -> None:
    sizes = write_tree(tmp_path, share=1 / 20)
    corpus = load(tmp_path, suffix="_filtered")
    assert not corpus.quarantined
    assert len(corpus.dialogues) == sum(sum(size.dialogues) for size in sizes.values()) == 1509
    assert len({d.video_id for d in corpus.dialogues}) == sum(sum(size.videos) for size in sizes.values()) == 199
    for number, split in enumerate(("train", "validation", "test")):
        assert len(corpus.split(split)) == sum(size.dialogues[number] for size in sizes.values())
    assert max(len(d.annotations) for d in corpus.dialogues) == LONGEST_EPIC
    assert {copy.second.partition("-")[0] for copy in corpus.duplicates} == {"epickitchens", "wtag"}
    assert not any(copy.crosses_splits for copy in corpus.duplicates)


LOAD = """
import resource, sys, time
from prospect.data.sources import DataSettings, load_dialogues
start = time.process_time()
corpus = load_dialogues(DataSettings(source="proassist", path=sys.argv[1], suffix="_filtered"))
seconds, kib = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
videos = len({d.video_id for d in corpus.dialogues})
print(videos, len(corpus.dialogues), len(corpus.quarantined), round(seconds, 1), round(kib / 2**20, 2))
"""


@pytest.mark.e2e
@pytest.mark.long
def test_the_whole_release_is_read_within_4_gib(tmp_path: Path) -> None:
    write_tree(tmp_path)
    run = subprocess.run([sys.executable, "-c", LOAD, tmp_path], capture_output=True, text=True, check=True)
    videos, dialogues, quarantined, seconds, gib = run.stdout.split()
    print(f"3,934 videos and 30,135 dialogues: {seconds} s of processor time, {gib} GiB at the peak")
    shutil.rmtree(tmp_path)  # 0.9 GB
    assert (videos, dialogues, quarantined) == ("3934", "30135", "0")
    assert float(gib) < 4
