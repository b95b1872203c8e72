"""Stream held-out videos and score the model. Run: python jobs/eval.py [evaluation.model=...]."""

from prospect.config import run_job
from prospect.pipeline import evaluate_and_show

if __name__ == "__main__":
    run_job("eval", evaluate_and_show)
