"""Asking a language model behind an OpenAI-compatible endpoint: bounded, cached, resumable, and with its price."""
