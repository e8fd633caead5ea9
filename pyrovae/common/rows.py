"""Row numbers of large sets, computed where they are asked for, in order or in a random order, with no list of them."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

LARGE = 2**20  # rows from which a random order is computed
ROUNDS = 6
AT_ONCE = 65_536


class Rows:
    """A stretch of the numbers 0 to N - 1, in order or in a pseudo-random order.

    The order is a Feistel network over the smallest 4^h >= N numbers, applied until it gives one below N. It is a
    bijection, whose inverse is known, so that neither the order nor a part of it has to be stored.

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, for the network and its walks.

    Args:
        count: N.
        key: key of the random order; None: in order.
        start: first place of the stretch.
        stop: place behind its last; None: N.
        device: device of the numbers that are returned.

    Example:
        >>> sorted(Rows(5, key=1)[:].tolist())
        [0, 1, 2, 3, 4]
    """

    def __init__(
        self,
        count: int,
        key: int | None = None,
        start: int = 0,
        stop: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.count, self.key, self.start = count, key, start
        self.stop = count if stop is None else stop
        self.device = torch.device(device)

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, places: Tensor | slice) -> Tensor:
        if isinstance(places, slice):
            places = torch.arange(*places.indices(len(self)), device="cpu")
        places = places.cpu()
        if places.dtype == torch.bool:
            if places.shape != (len(self),):
                raise IndexError(f"a mask of {len(self)} rows was expected, got {list(places.shape)}")
            places = places.nonzero().flatten()
        outside = (places < -len(self)) | (places >= len(self))
        if bool(outside.any()):
            raise IndexError(f"row {int(places[outside][0])} of {len(self)}")
        places = torch.where(places < 0, places + len(self), places)
        return self._mapped(places + self.start, forwards=True).to(self.device)

    @property
    def is_whole(self) -> bool:
        """Whether these are all numbers in order."""
        return self.key is None and len(self) == self.count

    def part(self, start: int, stop: int) -> "Rows":
        """Return a stretch of these numbers."""
        return Rows(self.count, self.key, self.start + start, self.start + stop, self.device)

    def parts(self, *sizes: int) -> "list[Rows]":
        """Return stretches of these sizes, one behind the other."""
        ends = np.cumsum([0, *sizes]).tolist()
        return [self.part(*span) for span in itertools.pairwise(ends)]

    def to(self, device: torch.device | str) -> "Rows":
        """Return the numbers on another device."""
        return Rows(self.count, self.key, self.start, self.stop, device)

    def cpu(self) -> "Rows":
        """Return the numbers on the CPU."""
        return self.to("cpu")

    def split(self, size: int) -> Iterator[Tensor]:
        """Iterate over the numbers, ``size`` at once."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def ascending(self, size: int) -> Iterator[Tensor]:
        """Iterate over the numbers in ascending order, at most ``size`` at once, as a file is best read."""
        for first in range(0, self.count, size):
            numbers = torch.arange(first, min(first + size, self.count), device="cpu")
            places = self._mapped(numbers, forwards=False)
            inside = numbers[(places >= self.start) & (places < self.stop)]
            if len(inside):
                yield inside

    def _mapped(self, numbers: Tensor, *, forwards: bool) -> Tensor:
        if self.key is None:
            return numbers
        found = numbers.numpy().astype(np.uint64)
        outside = np.ones(found.shape, bool)
        while outside.any():
            found[outside] = self._once(found[outside], forwards=forwards)
            outside = found >= self.count
        return torch.from_numpy(found.astype(np.int64))

    def _once(self, numbers: np.ndarray, *, forwards: bool) -> np.ndarray:
        half = np.uint64(max(1, -(-(self.count - 1).bit_length() // 2)))
        mask = np.uint64((1 << int(half)) - 1)
        left, right = numbers >> half, numbers & mask
        for number in range(ROUNDS) if forwards else reversed(range(ROUNDS)):
            if forwards:
                left, right = right, left ^ (self._mixed(right, number) & mask)
            else:
                left, right = right ^ (self._mixed(left, number) & mask), left
        return (left << half) | right

    def _mixed(self, half: np.ndarray, number: int) -> np.ndarray:
        """Mix one half of the bits with the key, by the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
        offset = (int(self.key or 0) + (number + 1) * 0x9E3779B97F4A7C15) % 2**64
        mixed = half + np.uint64(offset)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def shuffled(count: int, source: torch.Generator) -> "Tensor | Rows":
    """Return the numbers 0 to N - 1 in a random order: a tensor ``[N]``, or, of a million and more, :class:`Rows`."""
    if count < LARGE:
        return torch.randperm(count, generator=source, device="cpu")
    return Rows(count, key=int(torch.randint(2**62, (), generator=source, device="cpu")))


def ascending(rows: "Tensor | Rows", size: int = AT_ONCE) -> Iterator[Tensor]:
    """Iterate over row numbers in ascending order, ``size`` at once."""
    if isinstance(rows, Rows):
        return rows.ascending(size)
    return iter(torch.from_numpy(np.sort(rows.numpy())).split(size))
