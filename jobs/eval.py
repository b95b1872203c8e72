"""Stream held-out videos and score the model. Run: python jobs/eval.py [evaluation.model=...]."""

from prospect.cluster.evaluate import evaluate_and_show
from prospect.config.cli import run_job

if __name__ == "__main__":
    run_job("eval", evaluate_and_show)
