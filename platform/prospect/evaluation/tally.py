"""Named sums over videos. All ratios are micro-averaged: a video contributes counts, never a ratio."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Sums = dict[str, float]
"""What one dialogue contributes, by name."""


@dataclass(frozen=True)
class Tally:
    """Sums by name; float64 arrays of one shape, () for a plain sum, [B] for B draws of a bootstrap.

    `tally["correct"]` is one of them.
    """

    sums: Mapping[str, Floats]

    def __getitem__(self, name: str) -> Floats:
        return self.sums[name]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.sums))

    @classmethod
    def of(cls, sums: Mapping[str, float]) -> "Tally":
        return cls({name: np.asarray(value, dtype=np.float64) for name, value in sums.items()})

    @classmethod
    def from_columns(cls, names: Iterable[str], columns: Floats) -> "Tally":
        """The inverse of `columns`: the last axis becomes the sums."""
        return cls(dict(zip(names, np.moveaxis(np.asarray(columns, dtype=np.float64), -1, 0), strict=True)))

    def columns(self) -> Floats:
        """float64 [..., K], in the order of `names`."""
        return np.stack([self.sums[name] for name in self.names], axis=-1)

    @classmethod
    def total(cls, tallies: Iterable["Tally"]) -> "Tally":
        """The sum of tallies with the same names; without any, an empty one."""
        tallies = list(tallies)
        names = tallies[0].names if tallies else ()
        return cls({name: np.sum([tally[name] for tally in tallies], axis=0) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; `Tally.of` reads them again."""
        return {name: self.sums[name].tolist() for name in self.names}


Ratio = Callable[[Tally], Floats]
"""A metric that is a ratio of sums; NaN where undefined."""


def ratio(part: Floats, whole: Floats, empty: float = np.nan) -> Floats:
    """The ratio, and `empty` where `whole` is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.full(whole.shape, empty), where=whole > 0)


def f1(right: Floats, *wholes: Floats) -> Floats:
    """2 right / (generated + reference), the harmonic mean of precision and recall; NaN where both are 0."""
    return ratio(2 * right, np.sum(np.broadcast_arrays(*wholes), axis=0))


def precision_recall_f1(prefix: str, right: str, generated: str, reference: str) -> dict[str, Ratio]:
    """`PREFIX_precision`, `_recall` and `_f1` of three sums.

    Zero where one side has something and `whole` has nothing; undefined where neither has anything.
    """

    def defined(tally: Tally, value: Floats) -> Floats:
        return np.where(tally[generated] + tally[reference] > 0, value, np.nan)

    return {
        f"{prefix}_precision": lambda t: defined(t, ratio(t[right], t[generated], 0.0)),
        f"{prefix}_recall": lambda t: defined(t, ratio(t[right], t[reference], 0.0)),
        f"{prefix}_f1": lambda t: f1(t[right], t[generated], t[reference]),
    }
