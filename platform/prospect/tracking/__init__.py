"""Runs, metrics and registered models in MLflow, which nothing else imports (DESIGN 4.10)."""
