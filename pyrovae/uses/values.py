"""Values of sites, as tensors and as the user's own table."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from pyro.distributions import MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor

from pyrovae.data import Data, Field, carried
from pyrovae.likelihoods.missing import PartlyObserved
from pyrovae.likelihoods.mixed import Columns
from pyrovae.programs.types import Program
from pyrovae.tables import Encoding

WRAPPERS = (torch.distributions.Independent, MaskedDistribution, ExpandedDistribution, PartlyObserved)


class Values(dict[str, Tensor]):
    """Values by site, ``[..., N, event]``, on the CPU; a dictionary, and a table for what was fitted to one.

    Args:
        values: values by site.
        encoding: how the table was read that the model was fitted to; None where it was fitted to none.
        index: names of the N observations; None numbers them from 0.
        observed: names of the observed sites.
    """

    def __init__(
        self, values: Mapping[str, Tensor], encoding: Encoding | None = None, index: Any = None,
        observed: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(values)
        self.encoding, self.index, self.observed = encoding, index, observed

    def __repr__(self) -> str:
        sites = ", ".join(f"{name} {list(value.shape)}" for name, value in self.items())
        return f"{type(self).__name__}({sites})"

    def to_frame(self, site: str | None = None) -> pd.DataFrame:
        """Return an observed site as a table: names, units and categories of the table that the model was fitted to.

        Values ``[S, N, D]`` are put one below the other, their number in a first level of the index.

        Args:
            site: observed site; None takes the only one.

        Raises:
            ValueError: for a model that was not fitted to a table, or a site that does not hold its outcomes.
        """
        if self.encoding is None or self.encoding.scalings is None:
            raise ValueError("the model was not fitted to a table, so that its values have no names: take them by site")
        if site is None and len(self.observed) != 1:
            raise ValueError(f"say which site: the model observes {', '.join(self.observed)}")
        site = self.observed[0] if site is None else site
        if site not in self.observed:
            raise ValueError(f"site {site!r} is not observed: the model observes {', '.join(self.observed)}")
        values = self[site]
        outcomes = self.encoding.outcomes
        if values.dim() < 2 or values.shape[-1] != len(outcomes):
            raise ValueError(f"values [..., N, {len(outcomes)}] were expected, got {list(values.shape)}")
        own = self.encoding.scalings["outcome"].invert(values)
        if own.dim() == 2:
            return self.encoding.to_frame(own, "outcome", self.index)
        sets = own.reshape(-1, *own.shape[-2:])
        return pd.concat({k: self.encoding.to_frame(one, "outcome", self.index) for k, one in enumerate(sets)})


def values_of(model: Program, values: Mapping[str, Tensor], observed: tuple[str, ...], index: Any = None) -> Values:
    """Return values with what the model knows of its table."""
    return Values(values, carried(model), index, observed)


def with_holes(data: Any) -> Any:
    """Return tensors in which NaN is allowed; tables and data sets as they are."""
    if not isinstance(data, Tensor | np.ndarray | tuple | list):
        return data
    tensors = [torch.as_tensor(part) for part in (data if isinstance(data, tuple | list) else (data,))]
    return Data(*(Field(t, missing=t.is_floating_point() and bool(t.isnan().any())) for t in tensors))


def expected(fn: Any) -> Tensor:
    """Return the mean of a distribution; for categories without an order, which have none, the most probable one."""
    if isinstance(fn, Columns):
        return torch.cat([expected(part) for part in fn.parts], -1)
    if is_categorical(fn):
        return fn.logits.argmax(-1).to(fn.logits.dtype)
    if isinstance(fn, WRAPPERS):
        inner = expected(fn.base_dist)
        return inner.expand(fn.batch_shape + fn.event_shape)
    mean: Tensor = fn.mean
    return mean


def is_categorical(fn: Any) -> bool:
    """Whether a distribution is over categories without an order, numbered from 0."""
    return isinstance(fn, torch.distributions.Categorical) and type(fn).mean is torch.distributions.Categorical.mean


def nominal(fn: Any) -> np.ndarray:
    """Return which cells of an event hold categories without an order, ``[D]`` or a single one."""
    if isinstance(fn, Columns):
        return np.concatenate([np.full(n, bool(nominal(p).any())) for p, n in zip(fn.parts, fn.sizes, strict=True)])
    if isinstance(fn, WRAPPERS):
        return nominal(fn.base_dist)
    return np.array([is_categorical(fn)])


def averaged(values: Tensor, fn: Any) -> Tensor:
    """Average expected values ``[K, N, ...]`` over K draws: means, and of categories the most frequent one."""
    mean = values.double().mean(0).to(values.dtype)
    cells = nominal(fn)
    if not cells.any():
        return mean
    most = values.mode(0).values
    return most if len(cells) == 1 else torch.where(torch.from_numpy(cells), most, mean)
