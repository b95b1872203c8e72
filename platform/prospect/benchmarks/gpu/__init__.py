"""Every claim about a GPU on one card, in stages of six minutes together; see docs/benchmarks.md."""
