"""Stream held-out videos and score the model. Run: python jobs/eval.py [evaluation.model=...]."""

from prospect.cli import run_script

if __name__ == "__main__":
    run_script("eval")
