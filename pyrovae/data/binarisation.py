"""How intensities become bits. The protocol is part of the data, because results depend on it."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Binarisation(ABC):
    """Turns intensities in [0, 1] into bits.

    Attributes:
        random: whether the bits of an observation differ from one batch to the next.
    """

    random: bool

    @abstractmethod
    def draw(self, intensities: Tensor) -> Tensor:
        """Return bits for intensities of any shape."""


class Static(Binarisation):
    """Every pixel is drawn once, x ~ Bernoulli(intensity), and then stays the same.

    Args:
        seed: seed of the draw.
    """

    random = False

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def draw(self, intensities: Tensor) -> Tensor:
        """Draw the bits, the same for the same seed."""
        return torch.bernoulli(intensities, generator=torch.Generator(intensities.device).manual_seed(self.seed))


class Dynamic(Binarisation):
    """Every pixel is drawn anew for each batch; an evaluation draws the bits only once (:meth:`Data.fixed`)."""

    random = True

    def draw(self, intensities: Tensor) -> Tensor:
        """Draw the bits from torch's global generator."""
        return torch.bernoulli(intensities)
