"""The whole path on one machine. Run: make demo, or python jobs/demo.py [data=clips] [model=...] [vision=...]."""

from prospect.config.cli import run_job
from prospect.demo import demo

if __name__ == "__main__":
    run_job("demo", demo)
