"""Annotations -> DST labels. Run: python jobs/label.py [data=...]."""

from prospect.config import run_job
from prospect.pipeline import label_and_show

if __name__ == "__main__":
    run_job("label", label_and_show)
