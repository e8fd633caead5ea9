"""How close draws are to the user's data: precision, recall, density, coverage, Fréchet distance."""

from collections.abc import Callable
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import pairwise_distances
from sklearn.random_projection import GaussianRandomProjection
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.data import Data, Table, as_data
from pyrovae.diagnostics.predictive.simulate import Simulation, simulate
from pyrovae.importance.options import Options, shared_keywords
from pyrovae.nn.table import shown_columns
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
    """Compare draws of the model with held-out data in a space of features.

    One half of the data, ``m`` observations, is compared with as many draws (``model``) and with the other half
    (``data``). The second comparison shows the score of a perfect model at this number of data; read no score without
    it. The ball of an observation reaches to its k-th nearest observation, and the ball of a draw to its k-th nearest
    draw.

    - ``precision``: share of draws that lie in the ball of some observation; ``recall``: share of observations that lie
      in the ball of some draw;
    - ``density``: mean number of observations' balls that contain a draw, divided by k: 1 for a perfect model, more
      where draws are crowded; ``coverage``: share of observations whose ball contains a draw;
    - ``frechet``: squared Fréchet distance between Gaussians fitted to both: 0 if equal, and above 0 on finite data
      even for a perfect model.

    Source: Kynkäänniemi et al., "Improved precision and recall metric for assessing generative models", 2019; Naeem et
    al., "Reliable fidelity and diversity metrics for generative models", 2020; Dowson and Landau, "The Fréchet distance
    between multivariate normal distributions", 1982.

    Args:
        model: generative program ``model(*batch)``.
        data: held-out data: a tensor, a tuple of tensors, or a data set. Draws replace the tensors that the model
            observes; the other tensors stay as they are.
        features: function from the observed tensors ``[n, ...]`` to features ``[n, P]``, such as a classifier's last
            layer. It must be made without these data, because features fitted to one half would favour it. None: the
            columns themselves or, if there are more than 32, their projection onto 32 random directions, which
            keeps distances.
        neighbours: number of neighbours k.
        **options: seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        One row per score: ``model`` and its standard error ``model_se`` over draws and data, ``data`` and ``data_se``.

    Raises:
        ValueError: for a model that breaks the contract, bad data or bad numbers, fewer than 4 k observations, or
            features that are not finite numbers with one row per observation.

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
    whole = as_data(data, model).fixed().to(torch.device("cpu"))
    half = len(whole) // 2
    if half < 2 * neighbours:
        raise ValueError(f"at least {4 * neighbours} data are needed for {neighbours} neighbours, got {len(whole)}")
    order = torch.randperm(len(whole), generator=generator("halves", seed), device="cpu")
    first, second = whole.subset(order[:half]), whole.subset(order[half : 2 * half])
    apart = stream_seed("quality", seed)  # else data simulated with this seed would be drawn again
    settings: Options = {**options, "seed": apart}
    draws, masks = (simulate(model, one, **settings) for one in (second, first))
    sets = _sets(first, second, draws, masks)
    if features is None and isinstance(first, Table):
        sets = _of_columns(first, sets)
    real, *others = _features(features, sets, seed)
    columns = {}
    for name, candidate in zip(("model", "data"), others, strict=True):
        columns[name], columns[f"{name}_se"] = _scores(real, candidate, neighbours, seed)
    return pd.DataFrame(columns).rename_axis("score")


def _of_columns(first: Table, sets: list[tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
    """Return the columns of a table as numbers of one size: categories one-hot, logarithms of counts, standardised.

    A missing cell has the mean, and an indicator beside it.
    """
    shown = [shown_columns(one[0].double(), first.inputs) for one in sets]
    mean, deviation = shown[0].mean(0), shown[0].std(0)
    scale = torch.where(deviation > 0, deviation, 1.0)
    return [((values - mean) / scale, *one[1:]) for values, one in zip(shown, sets, strict=True)]


def _sets(first: Data, second: Data, draws: Simulation, masks: Simulation) -> list[tuple[Tensor, ...]]:
    """Return the observed tensors of the data, the draws and the other data; missing or masked is 0, NaN of a table."""
    whole, sets, fill = slice(0, len(first)), [], torch.nan if isinstance(first, Table) else 0
    for batch, values in (
        (first.batch(whole), masks.seen), (draws.seen, draws.seen), (second.batch(whole), draws.seen)
    ):  # fmt: skip
        sets.append(tuple(batch[k].masked_fill(values[k].isnan(), fill) for k in draws.observed))
    return sets


def _features(features: Features | None, sets: list[tuple[Tensor, ...]], seed: int) -> list[np.ndarray]:
    """Return every set's features, ``[n, P]``."""
    if features is None:
        flat = [np.concatenate([t.reshape(len(t), -1).double().numpy() for t in one], axis=1) for one in sets]
        if flat[0].shape[1] <= MOST_FEATURES:
            return flat
        projection = GaussianRandomProjection(MOST_FEATURES, random_state=library_seed("projection", seed)).fit(
            flat[0]
        )  # uses only the width
        return [projection.transform(one) for one in flat]
    with torch.no_grad():
        arrays = [np.asarray(torch.as_tensor(features(*one)).detach().cpu(), dtype=float) for one in sets]
    for values, one in zip(arrays, sets, strict=True):
        if values.ndim != 2 or len(values) != len(one[0]) or not np.isfinite(values).all():
            raise ValueError(
                f"features must be finite numbers [{len(one[0])}, P], got an array of shape {values.shape}"
            )
    return arrays


def _scores(real: np.ndarray, candidate: np.ndarray, k: int, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the scores and their standard errors, by halves of both sets.

    Scores of random halves vary around the score of the whole set as much as that score varies around the truth: the
    variance of a mean over half of n values, drawn without replacement and given the n values, is
    (2 / n - 1 / n) sigma^2.
    """
    distances = [pairwise_distances(*pair) for pair in ((real, candidate), (real, real), (candidate, candidate))]
    resample = numpy_generator("resamples", seed)

    def of(rows: np.ndarray, columns: np.ndarray) -> dict[str, float]:
        between, one, other = (d[np.ix_(i, j)] for d, (i, j) in zip(
            distances, ((rows, columns), (rows, rows), (columns, columns)), strict=True))  # fmt: skip
        return {**_balls(between, one, other, k), "frechet": _frechet(real[rows], candidate[columns])}

    half = [max(len(x) // 2, k + 1) for x in (real, candidate)]
    halves = [
        of(*(resample.permutation(len(x))[:size] for x, size in zip((real, candidate), half, strict=True)))
        for _ in range(RESAMPLES)
    ]
    errors = pd.DataFrame(halves).std().to_dict()
    return of(np.arange(len(real)), np.arange(len(candidate))), {
        str(name): float(error) for name, error in errors.items()
    }


def _balls(between: np.ndarray, real: np.ndarray, candidate: np.ndarray, k: int) -> dict[str, float]:
    """Return precision, recall, density and coverage, from distances ``[data, draws]`` and within each set."""
    radius, own = (np.partition(d, k, axis=1)[:, k] for d in (real, candidate))  # the first is itself
    inside = between <= radius[:, None]
    return {
        "precision": float(inside.any(0).mean()),
        "recall": float((between <= own[None]).any(1).mean()),
        "density": float(inside.sum() / k / between.shape[1]),
        "coverage": float(inside.any(1).mean()),
    }


def _frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Return the squared Fréchet distance between fitted Gaussians."""
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (one, other))
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values.clip(min=0))  # root root' = first
    shared = np.sqrt(np.linalg.eigvalsh(root.T @ second @ root).clip(min=0)).sum()  # trace of the root of the product
    apart = np.square(one.mean(0) - other.mean(0)).sum()
    return float(apart + np.trace(first) + np.trace(second) - 2 * shared)
