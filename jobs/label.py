"""Annotations -> DST labels. Run: python jobs/label.py [data=...]."""

from prospect.cluster.label import label_and_show
from prospect.config.cli import run_job

if __name__ == "__main__":
    run_job("label", label_and_show)
