"""Videos -> embeddings. Run: python jobs/embed.py [data=...] [vision=...]."""

from prospect.cli import run_script

if __name__ == "__main__":
    run_script("embed")
