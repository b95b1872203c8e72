"""Fine-tune a model. Run: python jobs/train.py [model=...] [training=...] [plan=true]."""

from prospect.cluster.train import train_and_show
from prospect.config.cli import run_job

if __name__ == "__main__":
    run_job("train", train_and_show)
