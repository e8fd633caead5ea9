"""The likelihood that is proposed for a table's columns."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from pyrovae.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood, LogNormal, NegativeBinomial, Ordinal
from pyrovae.tables import Column


def likelihood_of(columns: Sequence[Column], *, exposure: bool = False) -> list[tuple[Likelihood, int]]:
    """Return a likelihood and a number of columns for every run of columns that are alike.

    Args:
        columns: the outcomes.
        exposure: whether the counts have an exposure.
    """
    runs = [(key, len(list(run))) for key, run in groupby(enumerate(columns), key=_kind)]
    return [(_made(*key[:2], number, exposure), number) for key, number in runs]


def _kind(numbered: tuple[int, Column]) -> tuple[str, int, int]:
    """Return what columns of one part share; grades have cuts of their own, so that each is a part."""
    place, column = numbered
    return column.likelihood, len(column.levels), place if column.likelihood == "Ordinal" else -1


def _made(name: str, num_levels: int, number: int, exposure: bool) -> Likelihood:
    makers: dict[str, Any] = {
        "Gaussian": lambda: Gaussian(num_scales=number),
        "LogNormal": lambda: LogNormal(num_scales=number),
        "NegativeBinomial": lambda: NegativeBinomial(num_dispersions=number, exposure=exposure),
        "Bernoulli": lambda: Bernoulli(),
        "Ordinal": lambda: Ordinal(num_levels),
        "Categorical": lambda: Categorical(num_levels),
    }
    made: Likelihood = makers[name]()
    return made
