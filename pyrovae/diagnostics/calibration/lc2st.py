"""Local classifier two-sample tests: for which observations is q(z | x) wrong?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestRegressor
from torch import Tensor

from pyrovae.common.checks import at_least, shown
from pyrovae.data import Data, as_data
from pyrovae.diagnostics.calibration.drawn_pairs import drawn_flat, flat
from pyrovae.diagnostics.predictive.simulate import simulate
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords, without
from pyrovae.programs.streams import library_seed, numpy_generator, stream_seed
from pyrovae.programs.types import Program

Features = Callable[..., Any]
MOST_COLUMNS = 20  # numbers of an observation, above which its place is described by the guide's moments
MOMENTS = 100  # draws of the guide from which its moments are estimated
AT_ONCE = 128  # observations
LEAF = 20  # observations of a leaf of the trees that find out where the guide is alike


@dataclass(frozen=True, repr=False)
class LC2ST:
    """Local tests of q(z | x) against p(z | x) at N observations.

    Attributes:
        pvalue: p-value of each observation, by exchanging labels among simulations like it, ``[N]``.
        effect: mean difference of the classifier's log odds between the guide's draws and the true latents of
            simulations like it, ``[N]``, nats; above 0 where they are told apart. A classifier that knew both densities
            would give the symmetrised divergence KL(q || p) + KL(p || q).
        ess: number of simulations of equal weight that tell as much, ``[N]``.
        statistic: mean of (d - 1/2)^2 over the guide's draws, d the classifier's probability, ``[N]``.
        global_pvalue: p-value of ``statistic`` among classifiers that were trained with exchanged labels, ``[N]``: the
            null hypothesis is that the guide is right for all x. NaN where there are no such classifiers.
        overall: p-value of the guide being right on average over all simulations.
        index: names of the observations.
    """

    pvalue: Tensor
    effect: Tensor
    ess: Tensor
    statistic: Tensor
    global_pvalue: Tensor
    overall: float
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.pvalue)

    @property
    def adjusted(self) -> Tensor:
        """P-values adjusted for the number of observations, so that a false discovery rate is kept, ``[N]``.

        Source: Benjamini and Hochberg, "Controlling the false discovery rate", 1995.
        """
        return torch.from_numpy(stats.false_discovery_control(self.pvalue.numpy()))

    def table(self) -> pd.DataFrame:
        """Return one row per observation: pvalue, adjusted, effect, ess, statistic, global_pvalue."""
        names = ("pvalue", "adjusted", "effect", "ess", "statistic", "global_pvalue")
        return pd.DataFrame({n: getattr(self, n).numpy() for n in names}, index=self.index).rename_axis("datum")

    def worst(self, count: int = 10) -> pd.DataFrame:
        """Return the rows of the table with the smallest p-values, those with the largest effects first."""
        order = np.lexsort([-self.effect.numpy(), self.pvalue.numpy()])
        return self.table().iloc[order[: at_least("count", count, 1)]]

    def summary(self) -> dict[str, float]:
        """Return the overall p-value, and shares of observations with (adjusted) p-values of at most 0.05."""
        return {
            "num_data": len(self),
            "overall": self.overall,
            "rejected": float((self.pvalue <= 0.05).double().mean()),
            "rejected_adjusted": float((self.adjusted <= 0.05).double().mean()),
        }

    def __repr__(self) -> str:
        result = self.summary()
        return (
            f"local tests of the guide at {len(self)} observations: {result['rejected']:.0%} rejected at 5%, "
            f"{result['rejected_adjusted']:.0%} at a false discovery rate of 5%; over all simulations p = "
            f"{self.overall:.3g}"
        )


@shared_keywords(batch_size=BATCH_SIZE)
def lc2st(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_simulations: int = 10_000,
    num_draws: int = 100,
    num_permutations: int = 1999,
    num_null: int = 50,
    classifier: Any = None,
    features: Features | None = None,
    **options: Unpack[Options],
) -> LC2ST:
    """Test at every observation whether the guide is the posterior of this model, without a reference sampler.

    The model simulates pairs (z, x), and the guide adds a draw z' of q(z | x) to each. A classifier learns from two
    fifths of them to tell (z', x) from (z, x), in units of the guide's own means and standard deviations. Trees learn
    from the next three tenths where it succeeds. For an observation, the rest of the simulations are weighted by how
    often they share a leaf with it: if q(z | x) is right among them, exchanging z and z' changes nothing, which gives
    an exact p-value whatever classifier and trees have learnt.

    The test of Linhart and others is returned beside it (``statistic``, ``global_pvalue``). Its classifiers of the null
    hypothesis are trained with labels exchanged for all x, so that it rejects where the guide is right, too, if it is
    wrong elsewhere and the classifier is not perfectly local: the more simulations, the oftener.

    It is a test under this model with its present parameters. For data that the model does not make, see
    :func:`pyrovae.misspecification`.

    Source: Linhart, Gramfort and Rodrigues, "L-C2ST: Local diagnostics for posterior approximations in simulation-based
    inference", 2023; Athey, Tibshirani and Wager, "Generalized random forests", 2019, for the weights.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: observations to test at: a tensor, a tuple of tensors, a table, or a data set.
        num_simulations: number of simulations.
        num_draws: number of the guide's draws per observation in ``statistic``.
        num_permutations: number of exchanges; a p-value is at least 1 / (num_permutations + 1).
        num_null: number of classifiers of the global null hypothesis; 0 leaves them out.
        classifier: a scikit-learn classifier with probabilities; None: gradient-boosted trees.
        features: function ``f(*batch)`` that describes an observation by numbers, ``[rows, F]``; None: its own numbers
            up to 20, else means and log standard deviations of the guide.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, or a model without latents.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5).requires_grad_(False)
        >>> size = {"num_simulations": 500, "num_null": 0, "progress": False}
        >>> lc2st(model, guides.Exact(model), torch.zeros(7, 5), **size).pvalue.shape
        torch.Size([7])
    """
    for name, number, least in (
        ("num_simulations", num_simulations, 200), ("num_draws", num_draws, 2),
        ("num_permutations", num_permutations, 19), ("num_null", num_null, 0),
    ):  # fmt: skip
        at_least(name, number, least)
    learner = _learner(classifier, num_simulations, options["seed"])
    data, settings = as_data(data, model, guide).fixed(), without(options, "batch_size", "seed")
    own = stream_seed("simulations of lc2st", options["seed"])  # apart from those of the data, if these are simulated
    simulation = simulate(model, data, num_simulations=num_simulations, seed=own, **settings)
    if not simulation.latents:
        raise ValueError("the model has no latents that it draws, so there is nothing to test")
    wide = features is None and _columns(data) > MOST_COLUMNS
    made = _Rows.of(model, guide, simulation.data, 1, features, wide, options)
    asked = _Rows.of(model, guide, data, num_draws, features, wide, options)
    truth = made.standardised(flat(simulation.latents)[None])[0]
    scale = _Scale(made.places)
    order = numpy_generator("order of simulations", options["seed"]).permutation(
        num_simulations
    )  # theirs is the data's
    pairs = _Pairs(made.draws[0][order], truth[order], scale(made.places)[order])
    return _tested(pairs, asked, scale(asked.places), learner, num_permutations, num_null, options["seed"])


def _columns(data: Data) -> int:
    return sum(t[0].numel() for t in data.batch(slice(0, 1))[: len(data.fields)])


@dataclass(frozen=True)
class _Rows:
    """Observations as the test sees them.

    Attributes:
        draws: the guide's draws in units of its own moments, ``[draws, rows, D]``.
        mean: the guide's means, ``[rows, D]``.
        sd: its standard deviations, 1 where it does not vary.
        places: numbers that describe each observation, ``[rows, F]``.
        index: names of the observations.
    """

    draws: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    places: np.ndarray
    index: np.ndarray

    @staticmethod
    def of(
        model: Program, guide: Program, data: Data, num_draws: int, features: Features | None, wide: bool,
        options: Options,
    ) -> "_Rows":  # fmt: skip
        """Draw from the guide; the moments come from draws of their own."""
        every, batches = drawn_flat(model, guide, data, num_draws + MOMENTS, "lc2st", options)
        mean, sd = every[num_draws:].mean(0), every[num_draws:].std(0)
        sd = np.where(sd > 0, sd, 1.0)
        if features is not None:
            parts = [np.asarray(torch.as_tensor(features(*batch)).double()) for batch in batches]
            if any(part.ndim != 2 or len(part) != len(b[0]) for part, b in zip(parts, batches, strict=True)):
                raise ValueError(f"features must return numbers [rows, F], got {list(parts[0].shape)}")
            places = np.concatenate(parts)
            if not np.isfinite(places).all():
                raise ValueError("features must return finite numbers, and some are not")
        elif wide:
            places = np.concatenate([mean, np.log(sd)], 1)
        else:
            rows = [[t.reshape(len(t), -1).double().numpy() for t in batch] for batch in batches]
            places = np.concatenate([np.concatenate(row, 1) for row in rows])
        return _Rows((every[:num_draws] - mean) / sd, mean, sd, places, data.index)

    def standardised(self, latents: np.ndarray) -> np.ndarray:
        """Return latents ``[draws, rows, D]`` in units of the guide's moments."""
        return (latents - self.mean) / self.sd


class _Scale:
    """Standardises places by those of the simulations; what is missing becomes the mean."""

    def __init__(self, places: np.ndarray) -> None:
        known = np.where(np.isnan(places).all(0), 0.0, places)
        self.mean, deviation = np.nanmean(known, 0), np.nanstd(known, 0)
        self.deviation = np.where(deviation > 0, deviation, 1.0)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        scaled: np.ndarray = np.nan_to_num((places - self.mean) / self.deviation)
        return scaled


@dataclass(frozen=True)
class _Pairs:
    """Simulations: a draw of the guide and the true latents, ``[S, D]`` each, and places ``[S, F]``."""

    guide: np.ndarray
    truth: np.ndarray
    places: np.ndarray

    def part(self, rows: slice) -> "_Pairs":
        return _Pairs(self.guide[rows], self.truth[rows], self.places[rows])

    def exchanged(self, swaps: np.ndarray) -> "_Pairs":
        """Return the pairs with draw and truth exchanged in some of them."""
        one, other = (np.where(swaps[:, None], b, a) for a, b in ((self.guide, self.truth), (self.truth, self.guide)))
        return _Pairs(one, other, self.places)

    def learnt(self, classifier: Any) -> Any:
        """Return a classifier that was trained to tell the draws from the true latents."""
        rows = np.concatenate([_seen(self.guide, self.places), _seen(self.truth, self.places)])
        return clone(classifier).fit(rows, np.repeat([1, 0], len(self.guide)))


def _seen(latents: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return what the classifier sees: latents, their squares and products, and the places."""
    upper = (
        np.triu_indices(latents.shape[1]) if latents.shape[1] <= MOST_COLUMNS else (np.arange(latents.shape[1]),) * 2
    )
    return np.concatenate([latents, latents[:, upper[0]] * latents[:, upper[1]], places], 1)


def _log_odds(classifier: Any, latents: np.ndarray, places: np.ndarray) -> np.ndarray:
    chance = classifier.predict_proba(_seen(latents, places))[:, 1].clip(1e-6, 1 - 1e-6)
    return np.log(chance / (1 - chance))


def _tested(
    pairs: _Pairs, asked: _Rows, places: np.ndarray, classifier: Any, num_permutations: int, num_null: int, seed: int
) -> LC2ST:
    first, second = int(0.4 * len(pairs.guide)), int(0.7 * len(pairs.guide))
    learning, locating, testing = (pairs.part(s) for s in (slice(first), slice(first, second), slice(second, None)))
    learnt = learning.learnt(classifier)
    apart = [_log_odds(learnt, p.guide, p.places) - _log_odds(learnt, p.truth, p.places) for p in (locating, testing)]
    forest = RandomForestRegressor(100, min_samples_leaf=LEAF, random_state=library_seed("lc2st places", seed))
    forest.fit(locating.places, apart[0])
    source = numpy_generator("lc2st exchanges", seed)
    exchanged = source.choice([-1.0, 1.0], size=(num_permutations, len(apart[1]))) * apart[1]
    weights = _weights(forest, testing.places, places)
    effect = weights @ apart[1]
    pvalue = np.concatenate([_beyond(exchanged @ part.T, part @ apart[1]) for part in _chunks(weights)])
    overall = float(_beyond(exchanged.mean(1, keepdims=True), apart[1].mean(keepdims=True))[0])
    statistic = _statistic(learnt, asked, places)
    swaps = [source.random(first) < 0.5 for _ in range(num_null)]
    null = np.array([_statistic(learning.exchanged(s).learnt(classifier), asked, places) for s in swaps])
    beyond = _beyond(null, statistic) if num_null else np.full(len(statistic), np.nan)
    ess = 1 / (weights**2).sum(1)
    columns = {"pvalue": pvalue, "effect": effect, "ess": ess, "statistic": statistic, "global_pvalue": beyond}
    tensors = {name: torch.as_tensor(np.asarray(v, dtype=float), device="cpu") for name, v in columns.items()}
    return LC2ST(**tensors, overall=overall, index=asked.index)


def _weights(forest: RandomForestRegressor, simulated: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return how alike each observation and each simulation are, ``[N, S]``, rows of which sum to 1."""
    leaves, parts = forest.apply(simulated), []
    for rows in _chunks(forest.apply(places)):
        alike = leaves[None] == rows[:, None]
        parts.append((alike / alike.sum(1, keepdims=True).clip(1)).mean(2))
    weights = np.concatenate(parts)
    total = weights.sum(1, keepdims=True)
    return np.where(
        total > 0, weights / np.where(total > 0, total, 1), 1 / weights.shape[1]
    )  # of all, if none is alike


def _chunks(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, -(-len(rows) // AT_ONCE))


def _beyond(null: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return p-values ``[N]`` of values among those of the null hypothesis, ``[R, N]``."""
    pvalues: np.ndarray = (1 + (null >= own - 1e-12 * np.abs(own)).sum(0)) / (1 + len(null))
    return pvalues


def _statistic(classifier: Any, asked: _Rows, places: np.ndarray) -> np.ndarray:
    """Return the mean of (d - 1/2)^2 over the guide's draws, ``[N]``."""
    count = len(asked.draws)
    rows = _seen(asked.draws.reshape(-1, asked.draws.shape[2]), np.tile(places, (count, 1)))
    chance = classifier.predict_proba(rows)[:, 1].reshape(count, -1)
    result: np.ndarray = ((chance - 0.5) ** 2).mean(0)
    return result


def _learner(classifier: Any, size: int, seed: int) -> Any:
    """Return the classifier, seeded.

    Raises:
        ValueError: for one without probabilities.
    """
    if classifier is None:
        return _trees(size, seed)
    if not all(callable(getattr(classifier, name, None)) for name in ("fit", "predict_proba", "get_params")):
        raise ValueError(f"classifier must be one of scikit-learn with predict_proba, got {shown(classifier)}")
    own = clone(classifier)
    free = {
        n: library_seed("lc2st", seed) for n, v in own.get_params().items() if n.endswith("random_state") and v is None
    }
    return own.set_params(**free)


def _trees(size: int, seed: int) -> HistGradientBoostingClassifier:
    """Return gradient-boosted trees of interactions, with leaves that hold a fortieth of what they learn from."""
    return HistGradientBoostingClassifier(
        max_iter=60, learning_rate=0.05, max_leaf_nodes=8, min_samples_leaf=max(20, size // 100),
        random_state=library_seed("lc2st", seed),
    )  # fmt: skip
