"""The order of the data, and this process's shares of it, as functions of the seed and the step only."""

from collections.abc import Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor

from pyrovae.common.weights import drawn_by_weight
from pyrovae.data import Data
from pyrovae.programs.streams import generator
from pyrovae.programs.types import Batch
from pyrovae.training.group import Group


class Batches:
    """The batches of a fit.

    Args:
        data: data to fit to.
        batch_size: number of observations in a step; the last batch of an epoch holds the remaining ones.
        seed: seed of the order.
        group: group of processes, each of which takes its share of every batch.
        least: smallest size of a last batch; a smaller one is left out of its epoch, unless it is the only one.

    Attributes:
        size: number of observations in an epoch.
        per_epoch: number of batches in an epoch.
    """

    def __init__(self, data: Data, batch_size: int, seed: int, group: Group, least: int = 1) -> None:
        self.data, self.batch_size, self.seed, self.group, self.least = data, batch_size, seed, group, least
        rest = len(data) % batch_size
        self.size = len(data) - rest if 0 < rest < min(least, len(data)) else len(data)
        self.per_epoch = -(-self.size // batch_size)

    @property
    def num_sizes(self) -> int:
        """Number of different sizes of batches: the last batch of every epoch may be smaller."""
        return 2 if self.size % self.batch_size and self.per_epoch > 1 else 1

    def order(self, epoch: int) -> Tensor:
        """Return the observations of an epoch in their order, all but those of a last batch that is left out.

        A batch that holds the whole set keeps the set's own order, as under plain Pyro. There a program may have
        parameters ``[N]``, one per observation, and use them without the plate's indices.

        Observations with survey weights occur as often as their weights say: N w / sum(w) times, rounded down or up at
        random in every epoch, so that the objective is that of the population, whatever it is made of.
        """
        device, weights = self.data.device, self.data.weights
        if weights is not None:
            source = generator("order", self.seed, epoch)
            rows = drawn_by_weight(weights, len(weights), source)
            return rows[torch.randperm(len(rows), generator=source, device="cpu")][: self.size].to(device)
        if self.per_epoch == 1 and self.size == len(self.data):
            return torch.arange(len(self.data), device=device)
        source = generator("order", self.seed, epoch)
        return torch.randperm(len(self.data), generator=source, device="cpu")[: self.size].to(device)

    def indices(self, step: int) -> Tensor:
        """Return the indices of a step's observations."""
        epoch, position = divmod(step, self.per_epoch)
        return self.order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]

    def between(self, step: int, total: int) -> Iterator[tuple[int, Tensor, Batch]]:
        """Iterate over steps: the epoch, the indices, and this process's share of the batch, made when it is due."""
        while step < total:
            epoch, position = divmod(step, self.per_epoch)
            parts = self.order(epoch).split(self.batch_size)[position : position + total - step]
            for one in zip(repeat(epoch), parts, self._shares(parts), strict=False):
                step += 1
                yield one

    def _shares(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        if self.group.size == 1:
            return self.data.stream(parts)
        shares = [self.group.share(len(part)) for part in parts]
        if self.data.draws_anew:  # bits are drawn for the whole batch
            whole = self.data.stream(parts)
            return (tuple(share.of(t) for t in batch) for share, batch in zip(shares, whole, strict=True))
        return self.data.stream([share.of(part) for share, part in zip(shares, parts, strict=True)])
