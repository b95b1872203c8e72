"""Annotations -> DST labels. Run: python jobs/label.py [data=...]."""

from prospect.config import run_job
from prospect.pipeline import make_labels

if __name__ == "__main__":
    run_job("label", make_labels)
