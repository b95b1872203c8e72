"""Fine-tune a model. Run: python jobs/train.py [model=...] [training=...]."""

from prospect.config import run_job
from prospect.training.job import train

if __name__ == "__main__":
    run_job("train", train)
