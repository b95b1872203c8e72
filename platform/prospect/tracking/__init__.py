"""Runs, metrics and registered models in MLflow, which nothing else imports (docs/architecture.md#tracking)."""
