"""Annotations -> DST labels. Run: python jobs/label.py [data=...]."""

from prospect.cli import run_script

if __name__ == "__main__":
    run_script("label")
