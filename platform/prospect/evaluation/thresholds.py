"""Calibrated thresholds as a line of text."""

from collections.abc import Mapping

DEFAULT = "default"
"""Key of the thresholds that were calibrated on all data sets."""


def shown(thresholds: Mapping[str, Mapping[str, float]]) -> str:
    """Thresholds by data set, in one line."""
    names = sorted(thresholds, key=lambda name: (name == DEFAULT, name))
    parts = (
        f"{'others' if name == DEFAULT else name} "
        + ", ".join(f"{decides} {value:g}" for decides, value in sorted(thresholds[name].items()))
        for name in names
    )
    return "; ".join(parts)
