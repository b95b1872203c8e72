"""What an encoder needs of an image tower."""

from abc import abstractmethod

import torch
from torch import nn


class Tower(nn.Module):
    """An image tower: pictures [N, 3, S, S] -> its own output."""

    @abstractmethod
    def tokens(self, pictures: torch.Tensor, count: int) -> torch.Tensor:
        """The tokens of frames: pictures [N, 3, S, S] -> [N, I, D]; raises ConfigError where it has no such `count`."""
