"""The paged KV cache: pool, block tables, shared prefixes, and sessions parked outside the pool."""
