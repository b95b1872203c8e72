"""A synthetic `processed_data` in ProAssist's official layout, with the sizes that its paper gives for the real one."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TALK = "take put the a wheel cabin bowl flour mix screw pour water onto into next then your left right hand good"
SPLITS = ("train", "val", "test")
CAMERAS = ("HMC_21110305", "HMC_21179183", "HMC_84355350", "HMC_84358933")
USERS = ("no_talk", "talk_some", "talk_more")
LONGEST_EPIC = 881
"""Annotation lines of the longest EPIC-KITCHENS video."""


@dataclass(frozen=True)
class Size:
    """Of one data set: numbers for train, val and test, and means."""

    videos: tuple[int, ...]
    dialogues: tuple[int, ...]
    seconds: int
    """Of a video."""
    interval: float
    """Seconds from turn to turn."""
    lines: int
    """Annotation lines of a video."""
    copies: int = 1
    """How often the official filter repeats each conversation of train."""


SIZES = {
    "ego4d": Size((382, 32, 33), (3182, 96, 99), 1287, 23.1, 100),
    "holoassist": Size((1436, 97, 97), (7052, 291, 291), 268, 5.3, 60),
    "egoexolearn": Size((321, 41, 41), (3210, 123, 123), 768, 8.0, 60),
    "assembly101": Size((756, 112, 112), (7492, 336, 336), 205, 8.8, 25),
    "epickitchens": Size((320, 50, 50), (6376, 150, 150), 382, 6.8, 90, copies=2),
    "wtag": Size((40, 7, 7), (786, 21, 21), 640, 11.7, 30, copies=2),
}


def write_tree(root: Path, share: float = 1.0, suffix: str = "_filtered") -> dict[str, Size]:
    """Writes the dialogue files of all six data sets, and returns what they hold.

    Args:
        root: `processed_data`.
        share: of the videos and dialogues; 1 gives 3,934 videos and 30,135 dialogues.
        suffix: behind the split in the files' names.
    """
    written = {}
    for dataset, size in SIZES.items():
        videos = tuple(max(1, round(count * share)) for count in size.videos)
        dialogues = tuple(max(v, round(count * share)) for v, count in zip(videos, size.dialogues, strict=True))
        folder = root / dataset / "generated_dialogs"
        folder.mkdir(parents=True)
        for split, *counts in zip(SPLITS, videos, dialogues, strict=True):
            rng = random.Random(f"{dataset} {split}")
            with (folder / f"{split}{suffix}.json").open("w") as file:
                for number, video in enumerate(_videos(rng, dataset, split, size, *counts)):
                    file.write(("," if number else "[") + json.dumps(video))
                file.write("]")
        written[dataset] = Size(videos, dialogues, size.seconds, size.interval, size.lines, size.copies)
    return written


def _videos(rng: random.Random, dataset: str, split: str, size: Size, videos: int, dialogues: int) -> Iterator[Any]:
    text = " ".join(rng.choices(TALK.split(), k=20_000))
    for number in range(videos):
        share = dialogues * (number + 1) // videos - dialogues * number // videos
        distinct = -(-share // size.copies) if split == "train" else share
        talks = [_conversation(rng, text, size, n) for n in range(distinct)]
        longest = dataset == "epickitchens" and split == "train" and number == 0
        yield {
            "video_uid": _video_id(dataset, split, number),
            "inferred_goal": f"Making {_words(text, rng, 3)}",
            "inferred_knowledge": "The recipe\n" + "".join(f"{n}. {_words(text, rng, 8)}.\n" for n in range(1, 13)),
            "video_labels": {},
            "conversations": [talks[n % distinct] for n in range(share)],
            "parsed_video_anns": _annotations(rng, text, dataset, size, LONGEST_EPIC if longest else size.lines),
        }


def _video_id(dataset: str, split: str, number: int) -> str:
    name = f"{dataset}-{split}-{number:04}"
    if dataset == "assembly101":
        recording = f"nusar-2021_action_both_{split}_{number // 8:04}"
        return f"{('assembly', 'disassembly')[number // 4 % 2]}_{recording}__{CAMERAS[number % 4]}_mono10bit"
    return f"grp-{name}" if dataset == "ego4d" and number % 5 == 0 else name


def _words(text: str, rng: random.Random, count: int) -> str:
    start = rng.randrange(len(text) - 8 * count)
    return " ".join(text[start : start + 8 * count].split()[1 : count + 1])


def _conversation(rng: random.Random, text: str, size: Size, number: int) -> dict[str, Any]:
    turns: list[dict[str, Any]] = []
    for n in range(round(size.seconds / size.interval)):
        time = round(n * size.interval + rng.random(), 1)
        if n % 5 == 0:
            turns.append({"role": "user", "time": time, "content": _words(text, rng, 6), "labels": ""})
        else:
            progress = f"The time elapsed since the start of the task is {time} seconds. {_words(text, rng, 80)}"
            said = {"role": "assistant", "time": time, "content": _words(text, rng, 16), "progress": progress}
            turns.append(said | {"labels": f"initiative|{rng.choice(('instruction', 'feedback', 'correction'))}"})
    return {"user_type": USERS[number % 3], "conversation": turns, "auto_quality_eval": {"final_score": 8.5}}


def _annotations(rng: random.Random, text: str, dataset: str, size: Size, lines: int) -> dict[str, Any]:
    nested = dataset in ("ego4d", "holoassist")
    described, steps = [], []
    for n in range(lines):
        start, end = n * size.seconds / lines, (n + 0.9) * size.seconds / lines
        did = _words(text, rng, 4)
        described.append(f" - [{start:.1f}s] {did}" if nested and n % 10 else f"[{start:.1f}s-{end:.1f}s] {did}")
        steps.append({"start": start, "end": end, "narration": did, "desc": described[-1]})
    whole = "\n".join(described) + "\n"
    clips = [[0.0, float(size.seconds), whole] for _ in range(min(lines // 6, 8))]
    return {
        "dataset": dataset,
        "all_step_descriptions": whole + ("Summary: All is done.\n" if dataset == "holoassist" else ""),
        "clips": clips,
        "duration": float(size.seconds + 5),
        "num_steps": lines,
        "original_ann": {"steps": steps},
    }
