"""Fine-tune a model. Run: python jobs/train.py [model=...] [training=...] [plan=true]."""

from prospect.cli import run_script

if __name__ == "__main__":
    run_script("train")
