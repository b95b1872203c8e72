"""Mapping annotation lines to steps by a language model behind an OpenAI-compatible endpoint."""
