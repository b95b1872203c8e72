"""Assigns clips to training steps and ranks, as a pure function of seed and step."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from prospect.hashing import derived_seed


@dataclass(frozen=True)
class Share:
    """One rank's micro-batch: indices of clips, and whether they count in the loss.

    A rank without clips repeats one that does not count, because all ranks must take part in the same collectives.
    """

    clips: tuple[int, ...]
    counts: bool = True


class ClipSampler:
    """Cuts every epoch's permutation of the clips into global batches of nearly equal size.

    Any step can be asked for at any time, so that training resumes in the middle of an epoch. The clips of a batch are
    dealt by length, so that micro-batches take nearly equally long and no rank waits.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        """One length (any unit) a clip; `batch_size` is the largest number of clips of a global batch."""
        self.lengths = tuple(lengths)
        self.seed = seed
        self.steps_per_epoch = -(-len(self.lengths) // batch_size)
        self.largest_batch = -(-len(self.lengths) // max(self.steps_per_epoch, 1))
        self._order = lru_cache(maxsize=2)(self._permutation)

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def batch(self, step: int) -> list[int]:
        """The clips of global step `step`, from long to short."""
        epoch, number = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)
        chosen = _part(order, number, self.steps_per_epoch)
        return sorted(chosen, key=lambda clip: (-self.lengths[clip], clip))

    def shares(self, step: int, micro_batch_size: int, rank: int = 0, world_size: int = 1) -> list[Share]:
        """Rank `rank`'s micro-batches of a global step; every rank gets equally many, at every step.

        If the number of workers divides the number of micro-batches, it decides who computes a micro-batch, but not
        what is in it: dropout and noise are drawn by micro-batch.
        """
        batch = self.batch(step)
        accumulation = -(-self.largest_batch // (micro_batch_size * world_size))
        parts = accumulation * world_size
        dealt = [_deal_in_snake_order(batch, number, parts) for number in range(parts)]
        return [_share(clips, batch[-1]) for clips in dealt[rank::world_size]]

    def packed_shares(self, step: int, budget: int, rank: int = 0, world_size: int = 1) -> list[Share]:
        """Like `shares`, with micro-batches of at most `budget` units of length.

        Every rank gets equally many, as many as the batch needs; no clip may be longer than the budget.
        """
        bins: list[list[int]] = []
        for clip in self.batch(step):  # first fit, from long to short
            room = (each for each in bins if self._load(each) + self.lengths[clip] <= budget)
            if (chosen := next(room, None)) is None:
                bins.append([clip])
            else:
                chosen.append(clip)
        while len(bins) % world_size and any(len(each) > 1 for each in bins):
            bins.append(self._halve(max((each for each in bins if len(each) > 1), key=self._load)))
        bins += [[]] * (-len(bins) % world_size)
        mine = sorted(bins, key=self._load, reverse=True)[
            rank::world_size
        ]  # neighbours run at the same time on different ranks
        return [_share(clips, self.batch(step)[-1]) for clips in mine]

    def _load(self, clips: Sequence[int]) -> int:
        return sum(self.lengths[clip] for clip in clips)

    def _halve(self, clips: list[int]) -> list[int]:
        """Remove and return every second clip."""
        taken = clips[1::2]
        del clips[1::2]
        return taken

    def _permutation(self, epoch: int) -> list[int]:
        order = list(range(len(self.lengths)))
        random.Random(derived_seed("clip-order", self.seed, epoch)).shuffle(order)
        return order


def _part(items: list[int], number: int, parts: int) -> list[int]:
    """Part `number` of `parts` parts whose sizes differ by one at most."""
    return items[number * len(items) // parts : (number + 1) * len(items) // parts]


def _deal_in_snake_order(items: Sequence[int], part: int, parts: int) -> list[int]:
    """Every item of one part when dealt to 0, 1, 2, 2, 1, 0, 0, ...: descending lengths give nearly equal sums."""
    turn = [*range(parts), *reversed(range(parts))]
    return [item for number, item in enumerate(items) if turn[number % len(turn)] == part]


def _share(clips: Sequence[int], filler: int) -> Share:
    return Share(tuple(clips)) if clips else Share((filler,), counts=False)
