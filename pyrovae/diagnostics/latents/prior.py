"""The aggregate posterior compared with the prior: by coordinate, and as a whole."""

from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import pairwise_distances
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.data import as_data
from pyrovae.diagnostics.latents.scoring import refuse_masked
from pyrovae.diagnostics.predictive.draws import draw
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.importance.question import ask
from pyrovae.programs.streams import library_seed, numpy_generator
from pyrovae.programs.types import Program


@shared_keywords(batch_size=BATCH_SIZE)
def prior_against_posterior(
    model: Program,
    guide: Program,
    data: Any,
    **options: Unpack[Options],
) -> pd.DataFrame:
    """Compare the aggregate posterior, one draw of q(z | x) per observation, with as many draws of the prior.

    Where they differ, draws from the prior do not resemble the codes of the data, and a richer prior helps.

    Source: Hoffman and Johnson, "ELBO surgery", 2016.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        One row per latent coordinate: means and standard deviations of both, the Kolmogorov-Smirnov distance (between 0
        and 1) and its two-sample p-value, not corrected for the number of rows.

    Raises:
        ValueError: for a pair that breaks the contract, or bad data.
    """
    samples = _drawn(model, guide, as_data(data, model, guide), **options)
    rows = {}
    for name, (q, p) in samples.items():
        for d in range(q.shape[1]):
            test = stats.ks_2samp(q[:, d], p[:, d])
            rows[f"{name}[{d}]" if q.shape[1] > 1 else name] = {
                "posterior_mean": q[:, d].mean(),
                "posterior_sd": q[:, d].std(),
                "prior_mean": p[:, d].mean(),
                "prior_sd": p[:, d].std(),
                "distance": float(test.statistic),
                "pvalue": float(test.pvalue),
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("latent")


@dataclass(frozen=True)
class PriorTest:
    """Whether the aggregate posterior equals the prior, from one draw of each per observation.

    Attributes:
        distance: energy distance of both samples, in standard deviations of the pooled samples; 0 in expectation for
            equal distributions.
        pvalue: p-value of the permutation test with that distance.
        accuracy: cross-validated accuracy of a classifier that tells the draws apart; 0.5 where it cannot.
        kl: KL(q(z) || p(z)) from the classifier's density ratio, in nats; too small where the classifier cannot
            represent the ratio.
        kl_se: its standard error over the draws.
    """

    distance: float
    pvalue: float
    accuracy: float
    kl: float
    kl_se: float


@shared_keywords(batch_size=BATCH_SIZE)
def prior_test(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_permutations: int = 999,
    classifier: Any = None,
    max_data: int = 2000,
    **options: Unpack[Options],
) -> PriorTest:
    """Test whether codes, one draw of q(z | x) per observation, have the prior's distribution, all latents together.

    The p-value is exact for data to which the guide was not fitted, for any distributions, even where the prior
    depends on the observation, because the labels are exchanged within an observation. The classifier measures how far
    apart the distributions are. Where the guide can score an externally supplied z, :func:`pyrovae.aggregate` computes
    the divergence without a classifier.

    Source: Székely and Rizzo, "Energy statistics: a class of statistics based on distances", 2013; Rosca,
    Lakshminarayanan and Mohamed, "Distribution matching in variational inference", 2018, for the density ratio.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set; at least 20 observations.
        num_permutations: number of permutations; the p-value is at least 1 / (num_permutations + 1).
        classifier: a scikit-learn classifier with probabilities. None: gradient-boosted trees with a leaf size that
            depends on the number of observations. Their odds reach at most about 40, a KL of 3.7 nats, however far
            apart the distributions are.
        max_data: largest number of observations. From a larger set this many are taken at random, because the memory
            for the distances grows with the square of the number.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers.
    """
    num_permutations = at_least("num_permutations", num_permutations, 1)
    max_data = at_least("max_data", max_data, 20)
    whole = as_data(data, model, guide).fixed()
    if len(whole) < 20:
        raise ValueError(f"at least 20 data are needed to tell two distributions apart, got {len(whole)}")
    seed = options["seed"]
    samples = _drawn(model, guide, whole.numbered(assumed=True).sampled(max_data, seed), **options)
    q, p = (np.concatenate([pair[i] for pair in samples.values()], axis=1) for i in (0, 1))
    scale = np.concatenate([q, p]).std(axis=0)  # of both samples, so that it does not depend on the labels
    scaled = np.concatenate([q, p]) / np.where(scale > 0, scale, 1)
    label = np.repeat([1, 0], len(q))
    distance, pvalue = _energy(scaled, len(q), num_permutations, seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=library_seed("folds of codes", seed))
    estimator = clone(_trees(len(q), seed) if classifier is None else classifier)
    chance = cross_val_predict(estimator, scaled, label, cv=folds, method="predict_proba")[:, 1].clip(1e-6, 1 - 1e-6)
    ratio = np.log(chance / (1 - chance))[label == 1]
    return PriorTest(
        distance=distance,
        pvalue=pvalue,
        accuracy=float(((chance > 0.5) == label).mean()),
        kl=float(ratio.mean()),
        kl_se=float(ratio.std(ddof=1) / np.sqrt(len(ratio))),
    )


def _trees(size: int, seed: int) -> HistGradientBoostingClassifier:
    """Return gradient-boosted trees for ``size`` draws of each kind; with few, a leaf holds a fifth of them."""
    leaf = min(20, size // 5)
    return HistGradientBoostingClassifier(
        max_iter=60, learning_rate=0.05, min_samples_leaf=leaf, random_state=library_seed("trees", seed)
    )


def _energy(points: np.ndarray, count: int, num_permutations: int, seed: int) -> tuple[float, float]:
    """Return the energy distance between the first ``count`` points and the rest, and its permutation p-value."""
    distances = pairwise_distances(points)
    labels = np.repeat([1.0, -1.0], count)[None] / count
    swaps = numpy_generator("exchanged draws", seed).choice([-1.0, 1.0], size=(num_permutations, count))
    statistics = -np.einsum("ri,ri->r", (labels * np.tile(swaps, 2)) @ distances, labels * np.tile(swaps, 2))
    own = -float((labels @ distances @ labels.T)[0, 0])
    within = distances[:count, :count].sum() + distances[count:, count:].sum()
    unbiased = own - float(within) / (count**2 * (count - 1))  # the distance of a point from itself is 0
    return unbiased, float((1 + (statistics >= own * (1 - 1e-12)).sum()) / (1 + num_permutations))


def _drawn(
    model: Program, guide: Program, data: Any, **options: Unpack[Options]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return for every observation a draw of q(z | x) and one of the prior, by site, ``[N, D]`` each."""
    samples: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with ask(model, guide, data, **options) as question:
        for part in draw(question, 1, ("posterior", "prior"), "draws"):
            refuse_masked(question.layout.latents, *part.traces)
            for name in question.layout.latents:
                pair = (part.groups["posterior"][name][0], part.groups["prior"][name][0])
                samples.setdefault(name, []).append(pair)
    codes = {name: _rows(torch.cat([q for q, _ in pairs])) for name, pairs in samples.items()}
    return {name: (codes[name], _rows(torch.cat([p for _, p in pairs]))) for name, pairs in samples.items()}


def _rows(values: Tensor) -> np.ndarray:
    return np.asarray(values.reshape(len(values), -1).double().numpy())
