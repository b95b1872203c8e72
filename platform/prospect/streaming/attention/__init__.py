"""Attention over the pages of the KV cache, for many sessions in one call a layer."""
