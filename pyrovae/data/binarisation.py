"""How intensities become bits. The protocol is part of the data, since the numbers depend on it."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Binarisation(ABC):
    """Turns intensities in [0, 1] into bits.

    Attributes:
        random: whether the bits of a datum differ from one batch to the next.
    """

    random: bool

    @abstractmethod
    def prepare(self, intensities: Tensor) -> tuple[Tensor, "Binarisation | None"]:
        """Return what to store, and what is left to do for each batch."""

    @abstractmethod
    def draw(self, intensities: Tensor) -> Tensor:
        """Return a batch's bits."""


class Static(Binarisation):
    """Every pixel is drawn once, x ~ Bernoulli(intensity), and stays.

    Args:
        seed: of the draw.
    """

    random = False

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def prepare(self, intensities: Tensor) -> tuple[Tensor, None]:
        """Draw the bits."""
        generator = torch.Generator(intensities.device).manual_seed(self.seed)
        return torch.bernoulli(_checked(intensities), generator=generator), None

    def draw(self, intensities: Tensor) -> Tensor:
        """Return the bits."""
        return intensities


class Dynamic(Binarisation):
    """Every pixel is drawn anew each time that a batch is made; who judges draws once (:meth:`Data.fixed`)."""

    random = True

    def prepare(self, intensities: Tensor) -> tuple[Tensor, "Dynamic"]:
        """Keep the intensities."""
        return _checked(intensities), self

    def draw(self, intensities: Tensor) -> Tensor:
        """Draw bits."""
        return torch.bernoulli(intensities)


def _checked(intensities: Tensor) -> Tensor:
    low, high = float(intensities.min()), float(intensities.max())
    if low < 0 or high > 1:
        raise ValueError(f"intensities between 0 and 1 were expected to binarise, got {low:g} to {high:g}")
    return intensities
