"""Fine-tune a model. Run: python jobs/train.py [model=...] [training=...] [plan=true]."""

from prospect.config import run_job
from prospect.training.job import train_and_show

if __name__ == "__main__":
    run_job("train", train_and_show)
