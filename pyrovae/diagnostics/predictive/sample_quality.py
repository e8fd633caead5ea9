"""How close drawn data are to the user's: precision, recall, density, coverage, Fréchet distance."""

from collections.abc import Callable
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import pairwise_distances
from sklearn.random_projection import GaussianRandomProjection
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.data import Data, as_data
from pyrovae.diagnostics.predictive.simulate import Simulation, simulate
from pyrovae.importance.options import Options, shared_keywords
from pyrovae.programs.streams import generator, library_seed, numpy_generator, stream_seed
from pyrovae.programs.types import Program

Features = Callable[..., Any]
MOST_FEATURES = 32
RESAMPLES = 60


@shared_keywords()
def sample_quality(
    model: Program,
    data: Any,
    *,
    features: Features | None = None,
    neighbours: int = 5,
    **options: Unpack[Options],
) -> pd.DataFrame:
    """Compare draws of the model with data that it was not fitted to, in a space of features.

    Half of the data, ``m``, are compared with as many draws (``model``) and with the other half (``data``), which is
    what a perfect model would come to at this number of data: no score is to be read without it.

    - ``precision``: share of draws that lie in the ball of some observation's k nearest data; ``recall``: share of data
      that lie in the ball of some draw's k nearest draws;
    - ``density``: mean number of data's balls that a draw lies in, over k: 1 for a perfect model, more where draws
      crowd; ``coverage``: share of data whose ball holds a draw;
    - ``frechet``: squared Fréchet distance of Gaussians fitted to both; 0 is equal. Even a perfect model's is above 0
      on finite data.

    Source: Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models", 2019; Naeem et
    al., "Reliable fidelity and diversity metrics for generative models", 2020; Dowson and Landau, "The Fréchet distance
    between multivariate normal distributions", 1982.

    Args:
        model: generative program ``model(*batch)``.
        data: held-out data: a tensor, a tuple of tensors, or a data set; what the model draws takes the place of
            the tensors that it observes, the others are given.
        features: function from the observed tensors ``[n, ...]`` to features ``[n, P]``, such as a classifier's last
            layer, made without these data (features fitted to either half would favour it); None: the columns
            themselves, of more than 32 their projection onto as many random directions, which keeps distances.
        neighbours: k.
        **options: seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        One row per score: ``model`` and its standard error ``model_se`` over draws and data, ``data`` and ``data_se``.

    Raises:
        ValueError: for a model that breaks the contract, bad data or bad numbers, fewer than 4 k data, or features that
            are not finite numbers, one row per observation.

    Example:
        >>> from pyrovae import models
        >>> model = models.LinearGaussian(2, 5).requires_grad_(False)
        >>> x = simulate(model, torch.zeros(1, 5), num_simulations=400, progress=False).data
        >>> table = sample_quality(model, x, seed=1, progress=False)
        >>> bool((table.loc["coverage", "model"] - table.loc["coverage", "data"]) > -0.1)
        True
    """
    neighbours = at_least("neighbours", neighbours, 1)
    seed = options["seed"]
    whole = as_data(data).fixed().to(torch.device("cpu"))
    half = len(whole) // 2
    if half < 2 * neighbours:
        raise ValueError(f"at least {4 * neighbours} data are needed for {neighbours} neighbours, got {len(whole)}")
    order = torch.randperm(len(whole), generator=generator("halves", seed), device="cpu")
    compared, other = whole.subset(order[:half]), whole.subset(order[half : 2 * half])
    apart = stream_seed("quality", seed)  # data that were themselves simulated with this seed must not come again
    simulating: Options = {**options, "seed": apart}
    drawn, masked = (simulate(model, one, **simulating) for one in (other, compared))
    real, *others = _features(features, _sets(compared, other, drawn, masked), seed)
    columns = {}
    for name, made in zip(("model", "data"), others, strict=True):
        columns[name], columns[f"{name}_se"] = _scores(real, made, neighbours, seed)
    return pd.DataFrame(columns).rename_axis("score")


def _sets(compared: Data, other: Data, drawn: Simulation, masked: Simulation) -> list[tuple[Tensor, ...]]:
    """Return what is observed of the data, the draws and the other data, 0 where it is missing or masked."""
    whole, sets = slice(0, len(compared)), []
    for batch, seen in (
        (compared.batch(whole), masked.seen), (drawn.seen, drawn.seen), (other.batch(whole), drawn.seen)
    ):  # fmt: skip
        sets.append(tuple(batch[k].masked_fill(seen[k].isnan(), 0) for k in drawn.observed))
    return sets


def _features(features: Features | None, sets: list[tuple[Tensor, ...]], seed: int) -> list[np.ndarray]:
    """Return every set's features, ``[n, P]``."""
    if features is None:
        flat = [np.concatenate([t.reshape(len(t), -1).double().numpy() for t in one], axis=1) for one in sets]
        if flat[0].shape[1] <= MOST_FEATURES:
            return flat
        projection = GaussianRandomProjection(MOST_FEATURES, random_state=library_seed("projection", seed)).fit(
            flat[0]
        )  # takes the width alone
        return [projection.transform(one) for one in flat]
    with torch.no_grad():
        found = [np.asarray(torch.as_tensor(features(*one)).detach().cpu(), dtype=float) for one in sets]
    for values, one in zip(found, sets, strict=True):
        if values.ndim != 2 or len(values) != len(one[0]) or not np.isfinite(values).all():
            raise ValueError(
                f"features must be finite numbers [{len(one[0])}, P], got an array of shape {values.shape}"
            )
    return found


def _scores(real: np.ndarray, made: np.ndarray, k: int, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the scores and their standard errors, by halves of both sets.

    Around the whole set's, scores of random halves spread just as the whole set's do around the truth: the variance of
    a mean of half of n without replacement, given the n, is (2 / n - 1 / n) sigma^2.
    """
    distances = [pairwise_distances(*pair) for pair in ((real, made), (real, real), (made, made))]
    resample = numpy_generator("resamples", seed)

    def of(rows: np.ndarray, columns: np.ndarray) -> dict[str, float]:
        between, one, other = (d[np.ix_(i, j)] for d, (i, j) in zip(
            distances, ((rows, columns), (rows, rows), (columns, columns)), strict=True))  # fmt: skip
        return {**_balls(between, one, other, k), "frechet": _frechet(real[rows], made[columns])}

    half = [max(len(x) // 2, k + 1) for x in (real, made)]
    halves = [
        of(*(resample.permutation(len(x))[:size] for x, size in zip((real, made), half, strict=True)))
        for _ in range(RESAMPLES)
    ]
    errors = pd.DataFrame(halves).std().to_dict()
    return of(np.arange(len(real)), np.arange(len(made))), {str(name): float(error) for name, error in errors.items()}


def _balls(between: np.ndarray, real: np.ndarray, made: np.ndarray, k: int) -> dict[str, float]:
    """Return precision, recall, density and coverage, from distances ``[data, draws]`` and within either set."""
    radius, own = (np.partition(d, k, axis=1)[:, k] for d in (real, made))  # the first is itself
    inside = between <= radius[:, None]
    return {
        "precision": float(inside.any(0).mean()),
        "recall": float((between <= own[None]).any(1).mean()),
        "density": float(inside.sum() / k / between.shape[1]),
        "coverage": float(inside.any(1).mean()),
    }


def _frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Return the squared Fréchet distance of fitted Gaussians."""
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (one, other))
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values.clip(min=0))  # root root' = first
    shared = np.sqrt(np.linalg.eigvalsh(root.T @ second @ root).clip(min=0)).sum()  # trace of the root of the product
    apart = np.square(one.mean(0) - other.mean(0)).sum()
    return float(apart + np.trace(first) + np.trace(second) - 2 * shared)
