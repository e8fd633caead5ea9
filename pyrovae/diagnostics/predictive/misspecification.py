"""Is the user's data set within what the model makes, and where is it not?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.metrics import pairwise_distances

from pyrovae.common.checks import at_least, share
from pyrovae.data import Data, as_data
from pyrovae.diagnostics.calibration.ranks import Ranks, holm
from pyrovae.diagnostics.evidence.evaluate import Evaluation, evaluate
from pyrovae.diagnostics.latents.codes import codes
from pyrovae.diagnostics.predictive.pit import pit
from pyrovae.diagnostics.predictive.simulate import Simulation, simulate
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords, without
from pyrovae.importance.question import refuse_weights
from pyrovae.programs.streams import numpy_generator, stream_seed
from pyrovae.programs.types import Program

Summary = Callable[..., Any]
MOST = 5000  # simulated observations by default, or 20 per observation
FEW = 100  # observations, below which a test that does not reject says little
FEWEST = 20  # observations, below which no test says much
MOST_COLUMNS = 50  # of the data, above which their principal components are compared


@dataclass(frozen=True, repr=False)
class Misspecification:
    """N observations compared with those that the model simulates.

    Attributes:
        tests: one row per test of the whole set: ``statistic``, ``pvalue``, ``adjusted`` for their number (Holm).

            - ``latents``: maximum mean discrepancy of the means of q(z | x);
            - ``summaries``: the same of the data themselves, or of the user's summaries;
            - ``marginals``: the smallest p-value of the features' probability integral transforms, adjusted for their
              number;
            - ``evidence``: Kolmogorov and Smirnov's distance of the log evidence of both sets.
        observations: one row per observation: ``log_evidence``; ``pvalue``, the share of simulated observations whose
            evidence is no higher (relative to simulations with the same covariates and missing cells, where there are
            any); ``adjusted`` for the number of observations (false discovery rate); ``feature``, the observed feature
            that lies furthest out in its marginal, and ``feature_pvalue``, adjusted for the number of features
            (Bonferroni); ``reliable``, whether the importance weights are.
        features: one row per feature: the table of :meth:`pyrovae.Ranks.table` of the transforms.
        num_simulations: number of simulated observations.
        level: significance level.
    """

    tests: pd.DataFrame
    observations: pd.DataFrame
    features: pd.DataFrame
    num_simulations: int
    level: float

    def __len__(self) -> int:
        return len(self.observations)

    @property
    def rejected(self) -> bool:
        """Whether any test of the whole set says that the model does not make such data."""
        return bool((self.tests["adjusted"] <= self.level).any())

    def worst(self, count: int = 10) -> pd.DataFrame:
        """Return the observations that the model makes least often, the oddest first."""
        return self.observations.sort_values(["pvalue", "feature_pvalue"], kind="stable").head(
            at_least("count", count, 1)
        )

    def summary(self) -> dict[str, float]:
        """Return the smallest adjusted p-value, and shares of observations and features that are rejected."""
        return {
            "num_data": len(self),
            "pvalue": float(self.tests["adjusted"].min()),
            "observations": float((self.observations["adjusted"] <= self.level).mean()),
            "features": float((self.features["adjusted"] <= self.level).mean()),
            "unreliable": float((~self.observations["reliable"]).mean()),
        }

    def __repr__(self) -> str:
        found = [str(name) for name, p in self.tests["adjusted"].items() if p <= self.level]
        result, few = self.summary(), " (few data)" if len(self) < FEW else ""
        if found:
            text = f"the model does NOT make such data: {', '.join(found)} rejected at {self.level:g}"
        else:
            text = f"as a whole, {len(self)} observations{few} are not told from those that the model makes"
        text += f" (smallest adjusted p of the tests = {result['pvalue']:.3g})"
        odd = self.observations.index[self.observations["adjusted"] <= self.level]
        marginals = self.features.index[self.features["adjusted"] <= self.level]
        for what, names in (("observations that it does not make", odd), ("features with other marginals", marginals)):
            text += f"; {what} ({len(names)}): {_listed(names)}" if len(names) else f"; no {what}"
        if result["unreliable"]:
            text += f"; evidence NOT RELIABLE for {result['unreliable']:.0%} (k-hat)"
        return text


def _listed(names: Any, most: int = 5) -> str:
    shown = ", ".join(map(str, list(names)[:most]))
    return shown + (", ..." if len(names) > most else "")


@shared_keywords(batch_size=BATCH_SIZE)
def misspecification(
    model: Program,
    guide: Program,
    data: Any,
    *,
    summaries: Summary | None = None,
    level: float = 0.05,
    num_simulations: int | None = None,
    num_permutations: int = 999,
    num_particles: int = 200,
    max_data: int = 1000,
    **options: Unpack[Options],
) -> Misspecification:
    """Test whether data are within what the model makes, and name the observations and features that are not.

    Where they are not, the guide, which learnt from data of the model or from those that it was fitted to, answers
    about observations that it has not seen the like of: its posteriors are not to be trusted, however calibrated they
    are under the model (:func:`pyrovae.sbc`). Use data that the model was not fitted to: to its own it is closer.

    Observations are simulated with the data's covariates and missing cells. For both discrepancies each of the data is
    paired with one of them, and labels are exchanged within the pairs: their p-values are exact. The kernel is
    Gaussian, its width the median distance.

    Source: Schmitt, Bürkner, Köthe and Radev, "Detecting model misspecification in amortized Bayesian inference with
    neural networks", 2023; Gretton et al., "A kernel two-sample test", 2012.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: held-out data: a tensor, a tuple of tensors, a table, or a data set; at least 20 observations.
        summaries: function ``f(*batch)`` that returns numbers ``[rows, F]`` to compare both sets by; None: the data
            themselves, standardised, or their first 50 principal components.
        level: significance level of the words of the result.
        num_simulations: number of simulated observations whose evidence that of the data is compared with; None: 20
            per observation, at least 5,000. An observation's p-value is at least 1 / (num_simulations + 1), so that
            fewer cannot single out one observation of many.
        num_permutations: number of exchanges; a p-value of a discrepancy is at least 1 / (num_permutations + 1).
        num_particles: number of importance samples per observation for the log evidence.
        max_data: largest number of observations; of a larger set this many are taken at random.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, survey weights, or fewer than 20
            observations.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5).requires_grad_(False)
        >>> result = misspecification(model, guides.Exact(model), 5 + torch.randn(50, 5), progress=False)
        >>> result.rejected, list(result.tests.index)
        (True, ['latents', 'summaries', 'marginals', 'evidence'])
    """
    for name, number, least in (
        ("num_simulations", MOST if num_simulations is None else num_simulations, FEWEST),
        ("num_permutations", num_permutations, 19),
        ("num_particles", num_particles, 25), ("max_data", max_data, FEWEST),
    ):  # fmt: skip
        at_least(name, number, least)
    level = share("level", level, ends=False)
    whole = as_data(data, model, guide).fixed()
    refuse_weights(whole)
    if len(whole) < FEWEST:
        raise ValueError(f"at least {FEWEST} data are needed to compare them with simulated ones, got {len(whole)}")
    own, seed = whole.numbered(assumed=True).sampled(max_data, options["seed"]), options["seed"]
    rest = without(options, "batch_size")
    count = max(MOST, 20 * len(own)) if num_simulations is None else max(num_simulations, len(own))
    apart = {**rest, "seed": stream_seed("simulations of misspecification", seed)}  # from those that data may be
    simulation = simulate(model, own, num_simulations=count, **apart)
    simulated = simulation.data
    pairs = (own, simulated.subset(slice(0, len(own))))
    latents = [codes(model, guide, one, **options).numpy() for one in pairs]
    seen = [_summarised(one, summaries, options["batch_size"]) for one in pairs]
    own_evidence, reference = (
        evaluate(model, guide, one, num_particles=num_particles, **options) for one in (own, simulated)
    )
    ranks = pit(model, own, **rest)
    features = ranks.table()
    ks = stats.ks_2samp(own_evidence.log_evidence.numpy(), reference.log_evidence.numpy())
    tests = {
        "latents": discrepancy(latents[0], latents[1], num_permutations, numpy_generator("exchanges of latents", seed)),
        "summaries": discrepancy(seen[0], seen[1], num_permutations, numpy_generator("exchanges of summaries", seed)),
        "marginals": (float(features["pvalue"].min()), float(features["adjusted"].min())),
        "evidence": (float(ks.statistic), float(ks.pvalue)),
    }
    table = pd.DataFrame.from_dict(tests, orient="index", columns=["statistic", "pvalue"])
    table["adjusted"] = holm(torch.from_numpy(table["pvalue"].to_numpy().copy())).numpy()
    rows = _Rows.of(own, simulation)
    observations = _observations(own_evidence, reference, ranks, rows)
    return Misspecification(table.rename_axis("test"), observations, features, count, level)


def _summarised(data: Data, summaries: Summary | None, batch_size: int) -> np.ndarray:
    """Return numbers that describe each observation, ``[N, F]``."""
    batches = [tuple(t.cpu() for t in batch[: len(data.fields)]) for _, batch in data.batches(batch_size)]
    if summaries is None:
        return np.concatenate([np.concatenate([t.reshape(len(t), -1).double() for t in b], 1) for b in batches])
    parts = [np.asarray(torch.as_tensor(summaries(*batch)).double()) for batch in batches]
    if any(part.ndim != 2 or not np.isfinite(part).all() for part in parts):
        raise ValueError(f"summaries must return finite numbers [rows, F], got {list(parts[0].shape)}")
    return np.concatenate(parts)


def discrepancy(
    one: np.ndarray, other: np.ndarray, num_permutations: int, source: np.random.Generator
) -> tuple[float, float]:
    """Return the squared maximum mean discrepancy of paired samples ``[N, F]``, and its permutation p-value.

    Args:
        one: first sample; missing values count as the mean of both.
        other: second sample, its rows exchangeable with those of the first under the null hypothesis.
        num_permutations: number of exchanges.
        source: generator of the exchanges.
    """
    points = _pooled(np.concatenate([one, other]))
    distances, count = pairwise_distances(points, metric="sqeuclidean"), len(one)
    width = np.median(distances[np.triu_indices(len(points), 1)]) or 1.0
    kernel = np.exp(-distances / width)
    np.fill_diagonal(kernel, 0.0)
    kernel[np.arange(count), count + np.arange(count)] = kernel[count + np.arange(count), np.arange(count)] = 0.0
    labels = np.repeat([1.0, -1.0], count)
    signs = np.tile(source.choice([-1.0, 1.0], size=(num_permutations, count)), 2) * labels
    scale = count * (count - 1)
    null = np.einsum("ri,ri->r", signs @ kernel, signs) / scale
    own = float(labels @ kernel @ labels / scale)
    return own, float((1 + (null >= own - 1e-12).sum()) / (1 + num_permutations))


def _pooled(points: np.ndarray) -> np.ndarray:
    """Return points in units of their pooled standard deviations; many columns as principal components."""
    known = np.where(np.isnan(points).all(0), 0.0, points)
    deviation = np.nanstd(known, 0)
    scaled = np.nan_to_num((known - np.nanmean(known, 0)) / np.where(deviation > 0, deviation, 1.0))
    if scaled.shape[1] <= MOST_COLUMNS:
        return scaled
    vectors, values, _ = np.linalg.svd(scaled, full_matrices=False)
    components: np.ndarray = (vectors * values)[:, :MOST_COLUMNS]
    return components


@dataclass(frozen=True)
class _Rows:
    """What the rows of the data and of the simulations have in common.

    Attributes:
        index: names of the observations.
        row: row of the data whose covariates and missing cells each simulation has, ``[M]``; None where all rows are
            alike.
        missing: whether each feature of each observation is missing, ``[N, D]``; None where that is not known.
    """

    index: np.ndarray
    row: np.ndarray | None
    missing: np.ndarray | None

    @staticmethod
    def of(data: Data, simulation: Simulation) -> "_Rows":
        count, fields = len(data), data.batch(slice(0, len(data)))[: len(data.fields)]
        holes = [t.reshape(count, -1).isnan().cpu().numpy() for k, t in enumerate(fields) if k in simulation.observed]
        missing = np.concatenate(holes, 1)
        alike = len(simulation.observed) == len(fields) and not missing.any()
        own, theirs = ([int(n) for n in numbers] for numbers in _numbers(data, simulation.data))
        places = {number: k for k, number in enumerate(own)}
        row = None if alike else np.array([places[number] for number in theirs])
        return _Rows(data.index, row, missing)


def _numbers(*sets: Data) -> list[Any]:
    return [() if one.numbers is None else one.numbers for one in sets]


def _observations(own: Evaluation, simulated: Evaluation, ranks: Ranks, rows: _Rows) -> pd.DataFrame:
    values, reference = own.log_evidence.numpy(), simulated.log_evidence.numpy()
    if rows.row is not None:
        values, reference = _relative(values, reference, rows.row)
    below = np.searchsorted(np.sort(reference), values, side="right")
    pvalue = (1 + below) / (1 + len(reference))
    transforms = ranks.pit.numpy()
    extreme = 2 * np.minimum(transforms, 1 - transforms)
    known = np.ones_like(extreme, dtype=bool)
    if rows.missing is not None and rows.missing.shape == extreme.shape:
        known = ~rows.missing
    extreme = np.where(known, extreme, 1.0)
    furthest = extreme.argmin(1)
    smallest = extreme[np.arange(len(furthest)), furthest] * known.sum(1)
    columns = {
        "log_evidence": own.log_evidence.numpy(),
        "pvalue": pvalue,
        "adjusted": stats.false_discovery_control(pvalue),
        "feature": [ranks.names[k] for k in furthest],
        "feature_pvalue": np.minimum(smallest, 1.0),
        "reliable": own.reliable.numpy(),
    }
    return pd.DataFrame(columns, index=rows.index).rename_axis("datum")


def _relative(values: np.ndarray, reference: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return evidence in units of the other evidence with the same covariates and missing cells.

    Each value is standardised by the mean and standard deviation of the others of its row, the observation's own
    included, so that the values of a row stay exchangeable.

    Args:
        values: evidence of the data, ``[N]``.
        reference: evidence of the simulations, ``[M]``.
        row: row of the data that each simulation belongs to, ``[M]``.
    """
    everything, places = np.concatenate([values, reference]), np.concatenate([np.arange(len(values)), row])
    count, total, square = (
        np.bincount(places, weights=w, minlength=len(values))[places]
        for w in (np.ones_like(everything), everything, everything**2)
    )
    others = np.maximum(count - 1, 1)
    mean = (total - everything) / others
    variance = (square - everything**2) / others - mean**2
    relative = (everything - mean) / np.sqrt(np.maximum(variance, 1e-12))
    return relative[: len(values)], relative[len(values) :]
