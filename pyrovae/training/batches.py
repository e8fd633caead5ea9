"""The order of the data, and this process's shares of it, as functions of the seed and the step only."""

from collections.abc import Iterable, Iterator
from itertools import repeat, tee

import torch
from torch import Tensor

from pyrovae.common.rows import AT_ONCE, Rows, shuffled
from pyrovae.common.weights import drawn_by_weight
from pyrovae.data import Data
from pyrovae.programs.streams import generator
from pyrovae.programs.types import Batch
from pyrovae.training.group import Group


class Batches:
    """The batches of a fit.

    Args:
        data: data to fit to.
        batch_size: number of observations in a step; the last batch of an epoch holds the remaining ones. Data with
            survey weights are never in one batch: at most half of them.
        seed: seed of the order.
        group: group of processes, each of which takes its share of every batch.
        least: smallest size of a last batch; a smaller one is left out of its epoch, unless it is the only one.

    Attributes:
        size: number of observations in an epoch.
        per_epoch: number of batches in an epoch.
    """

    def __init__(self, data: Data, batch_size: int, seed: int, group: Group, least: int = 1) -> None:
        if data.weights is not None:  # repeats observations, which no batch in the set's own order does
            batch_size = min(batch_size, -(-len(data) // 2))
        self.data, self.batch_size, self.seed, self.group, self.least = data, batch_size, seed, group, least
        rest = len(data) % batch_size
        self.size = len(data) - rest if 0 < rest < min(least, len(data)) else len(data)
        self.per_epoch = -(-self.size // batch_size)

    @property
    def num_sizes(self) -> int:
        """Number of different sizes of batches: the last batch of every epoch may be smaller."""
        return 2 if self.size % self.batch_size and self.per_epoch > 1 else 1

    def order(self, epoch: int) -> Tensor | Rows:
        """Return the observations in the order of an epoch, those of a last batch that is left out at the end.

        A batch that holds the whole set keeps the set's own order, as under plain Pyro. There a program may have
        parameters ``[N]``, one per observation, and use them without the plate's indices.

        Observations with survey weights occur as often as their weights say: N w / sum(w) times, rounded down or up at
        random in every epoch, so that the objective is that of the population, whatever it is made of.
        """
        device, weights = self.data.device, self.data.weights
        if weights is not None:
            source = generator("order", self.seed, epoch)
            rows = drawn_by_weight(weights, len(weights), source)
            return rows[shuffled(len(rows), source)[:]].to(device)
        if self.per_epoch == 1 and self.size == len(self.data):
            return torch.arange(len(self.data), device=device)
        return shuffled(len(self.data), generator("order", self.seed, epoch)).to(device)

    def indices(self, step: int) -> Tensor:
        """Return the indices of a step's observations."""
        epoch, position = divmod(step, self.per_epoch)
        return next(iter(self._parts(self.order(epoch), position, 1)))

    def _parts(self, order: Tensor | Rows, position: int, most: int) -> Iterator[Tensor]:
        """Iterate over an epoch's batches from a position on, at most so many; their rows are computed in stretches."""
        start, stop = position * self.batch_size, min(self.size, (position + most) * self.batch_size)
        stretch = self.batch_size * min(most, -(-AT_ONCE // self.batch_size))
        for first in range(start, stop, stretch):
            yield from order[first : min(first + stretch, stop)].split(self.batch_size)

    def between(self, step: int, total: int) -> Iterator[tuple[int, Tensor, Batch]]:
        """Iterate over steps: the epoch, the indices, and this process's share of the batch, made when it is due."""
        while step < total:
            epoch, position = divmod(step, self.per_epoch)
            parts, ahead = tee(self._parts(self.order(epoch), position, total - step))
            for one in zip(repeat(epoch), parts, self._shares(ahead), strict=False):
                step += 1
                yield one

    def _shares(self, parts: Iterable[Tensor]) -> Iterator[Batch]:
        if self.group.size == 1:
            return self.data.stream(parts)
        if self.data.draws_anew:  # bits are drawn for the whole batch
            whole, sizes = tee(parts)
            batches = zip(self.data.stream(whole), sizes, strict=True)
            return (tuple(self.group.share(len(part)).of(t) for t in batch) for batch, part in batches)
        return self.data.stream(self.group.share(len(part)).of(part) for part in parts)
