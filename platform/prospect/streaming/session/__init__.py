"""One session's control flow: its context, its decisions, what it writes, and its portable log."""
