"""Videos -> embeddings. Run: python jobs/embed.py [data=...] [vision=...]."""

from prospect.cluster.embed import embed
from prospect.config.cli import run_job

if __name__ == "__main__":
    run_job("embed", embed)
