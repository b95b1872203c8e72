"""One forward pass a step for the tokens of all sessions: scheduling, trunk, heads."""
