"""Fine-tune a model on a folder of videos and dialogues, and score it: what the four jobs do, from Python.

Run: python examples/fine_tune_folder.py FOLDER [section.key=value ...]

FOLDER holds videos and dialogues.json (docs/data.md). Overrides are those of `prospect train --help`.
"""

import sys

from prospect import load_config
from prospect.cluster.embed import embed
from prospect.cluster.evaluate import evaluate_model
from prospect.cluster.label import make_labels
from prospect.cluster.train import train


def main(folder: str, *overrides: str) -> None:
    config = load_config("demo", ["data=clips", f"data.path={folder}", "training=few_videos", *overrides])
    embed(config)  # videos that are embedded already are skipped
    make_labels(config)
    result = train(config)  # the same run name continues a run, or returns a finished one
    print(f"loss {result.first_loss:.2f} -> {result.last_loss:.2f} in {result.steps} steps: {result.model}")
    scores = evaluate_model(config).scores["trained model"].overall
    accuracy = scores["joint_goal_accuracy"]
    print(f"turn F1 {scores['turn_f1']}, joint goal accuracy {'undefined' if accuracy is None else accuracy}")


if __name__ == "__main__":
    main(*sys.argv[1:])
