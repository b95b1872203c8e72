"""Look before anything is computed. Run: python jobs/check.py [data=...] or [model=FOLDER]."""

from prospect.cli import run_script

if __name__ == "__main__":
    run_script("check")
