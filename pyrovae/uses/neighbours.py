"""Observations with similar posteriors."""

from typing import Any, Unpack

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

from pyrovae.common.checks import at_least, share
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.programs.streams import library_seed
from pyrovae.programs.types import Program
from pyrovae.uses.drawn_codes import drawn_codes

DRAWS, AT_ONCE = 50, 2**24  # draws of which shares are counted; pairs of neighbours that are compared at once


@shared_keywords(batch_size=BATCH_SIZE)
def neighbours(
    model: Program,
    guide: Program,
    data: Any,
    queries: Any = None,
    num: int = 10,
    *,
    site: str | None = None,
    least_activity: float = 0.01,
    num_draws: int = 200,
    **options: Unpack[Options],
) -> pd.DataFrame:
    """Find the observations whose latents are nearest to those of each query, with the posteriors' spread counted.

    The distance of two observations is the root of E|z - z'|^2 under their posteriors: the squared distance of the
    posterior means, and both variances. An observation that little is known about is near to none.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: N observations among which neighbours are sought: a tensor, a tuple of tensors, a table, or a data set.
        queries: observations whose neighbours are sought; None: those of ``data``, each without itself.
        num: number of neighbours.
        site: latent site; None: all of them, side by side.
        least_activity: latents whose posterior means make up less than this share of their variance over the data are
            left out.
        num_draws: number of posterior draws per observation; distances have errors of about their spread over the root
            of this number.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        One row per query and rank, nearest first: ``neighbour`` (its name), ``distance``, and ``share``, the share of
        50 draws in which it is among the ``num`` nearest. Where shares are small, the posteriors do not tell which
        observations are nearest.

    Raises:
        ValueError: for fewer than ``num`` possible neighbours, a pair that breaks the contract, discrete latents, or
            no latent that holds anything.

    Example:
        >>> import torch
        >>> from pyrovae import guides, models
        >>> model, x = models.LinearGaussian(2, 5), torch.arange(150.0).sin().reshape(30, 5)
        >>> neighbours(model, guides.Exact(model), x, num=3, progress=False).shape
        (90, 3)
    """
    num = at_least("num", num, 1)
    least_activity = share("least_activity", least_activity, ends=True)
    settings: Any = {"site": site, "num_draws": num_draws, "posterior": None}
    found = drawn_codes(model, guide, data, **settings, options=options)
    own = queries is None
    if len(found.index) - own < num:
        raise ValueError(f"{len(found.index)} observations do not have {num} neighbours each: lower num")
    kept = found.kept(least_activity)
    asked = among = found.of(kept)
    if not own:  # with noise of their own, so that a query that is in the data is a copy, and not the same draws
        others: Any = {**options, "seed": library_seed("queries", options["seed"])}
        asked = drawn_codes(model, guide, queries, **settings, options=others).of(kept)
    rows, distances = _nearest(among.draws, asked.draws, num, own)
    shares, some = np.zeros(rows.shape), slice(0, DRAWS)
    for there, here in zip(among.draws[some], asked.draws[some], strict=True):
        nearest = _ranked(NearestNeighbors().fit(there), here, num, own)[1]
        for own_rows in np.array_split(np.arange(len(rows)), max(1, rows.size * num // AT_ONCE)):
            shares[own_rows] += (rows[own_rows, :, None] == nearest[own_rows, None, :]).any(2)
    index = pd.MultiIndex.from_product([asked.index, range(1, num + 1)], names=["datum", "rank"])
    columns = {
        "neighbour": among.index[rows].ravel(), "distance": distances.ravel(),
        "share": (shares / len(among.draws[some])).ravel(),
    }  # fmt: skip
    return pd.DataFrame(columns, index=index)


def _nearest(there: np.ndarray, here: np.ndarray, num: int, own: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest rows by the expected squared distance, ``[Q, num]``, and its root."""
    means, spread = there.mean(0), there.var(0, ddof=1).sum(1)
    own_means, own_spread = here.mean(0), here.var(0, ddof=1).sum(1)
    # the squared distance of means holds 1/S of both variances as noise
    seen, weight = len(there), np.sqrt(spread * (1 - 1 / len(there)))
    tree = NearestNeighbors().fit(np.column_stack([means, weight]))
    distances, rows = _ranked(tree, np.column_stack([own_means, np.zeros(len(own_means))]), num, own)
    return rows, np.sqrt(distances**2 + own_spread[:, None] * (1 - 1 / seen))


def _ranked(tree: NearestNeighbors, points: np.ndarray, num: int, own: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return distances and rows of the nearest points; with ``own``, points are the tree's, and not their own."""
    if not own:
        distances, rows = tree.kneighbors(points, num)
        return distances, rows
    distances, rows = tree.kneighbors(points, num + 1)
    itself = rows == np.arange(len(rows))[:, None]
    itself[~itself.any(1), -1] = True  # of many equal points the point itself may not be among the nearest
    return distances[~itself].reshape(-1, num), rows[~itself].reshape(-1, num)
