"""The whole path on one machine. Run: make demo, or python jobs/demo.py [data=clips] [model=...] [vision=...]."""

from prospect.cli import run_script

if __name__ == "__main__":
    run_script("demo")
