"""Videos -> embeddings. Run: python jobs/embed.py [data=...] [vision=...]."""

from prospect.config import run_job
from prospect.pipeline import embed

if __name__ == "__main__":
    run_job("embed", embed)
