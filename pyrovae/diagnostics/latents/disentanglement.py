"""Do single latents hold single factors? Five published metrics of codes and the factors behind the data."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import entropy
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, mutual_info_score
from sklearn.model_selection import train_test_split

from pyrovae.common.checks import at_least
from pyrovae.programs.streams import library_seed, numpy_generator

BINS = 20
Metrics = dict[str, float]


def disentanglement(
    codes: Any,
    factors: Any,
    *,
    categorical: Sequence[int] = (),
    num_permutations: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Score how far every latent holds only one factor, and every factor is held by only one latent.

    - ``mig``: mutual information gap. Take the two latents with the most mutual information with a factor. The gap is
      the difference of the two, as a share of the factor's entropy; mean over factors. Chen, Li, Grosse and Duvenaud,
      2018.
    - ``sap``: separated attribute predictability. The same gap in how well one latent alone predicts a factor, by the
      squared correlation or, for a categorical factor, the balanced accuracy above chance. Kumar, Sattigeri and
      Balakrishnan, 2018.
    - ``dci_disentanglement``, ``dci_completeness``, ``dci_informativeness``: from a forest that predicts a factor from
      all latents, how far each latent matters to only one factor, how far each factor needs only one latent, and the
      accuracy on held-out data. Eastwood and Williams, 2018.
    - ``factor_vae``: in a group of data that share one factor, the latent that varies least votes for that factor;
      accuracy of that vote on new groups. Kim and Mnih, 2018.
    - ``modularity``: how far every latent has mutual information with only one factor. Ridgeway and Mozer, 2018.

    All scores are 1 for codes that equal the factors, in any order and on any linear scale. None changes when latents
    are permuted, scaled or mirrored (forests up to the randomness of their trees). On finite data, codes of pure noise
    score above 0: ``chance`` is the mean score of the same codes with their rows shuffled, and ``chance_sd`` is its
    standard deviation between shuffles.

    Args:
        codes: means of q(z | x), ``[N, D]``, as :func:`pyrovae.codes` returns them.
        factors: level of every factor, integers ``[N, F]``, on a scale that a linear code would have (only ``sap`` uses
            the scale); at least 2 factors, and each must vary.
        categorical: column numbers of the factors whose levels have no order.
        num_permutations: number of shuffles for ``chance``; with 0 there is no ``chance``, with 1 no ``chance_sd``.
        seed: random seed of shuffles, groups and forests.

    Returns:
        One row per metric: ``value``, ``chance``, ``chance_sd``, and ``adjusted``, (value - chance) / (1 - chance),
        which is 0 for noise and 1 where ``value`` is 1.

    Raises:
        ValueError: for codes and factors of other shapes, codes that are not finite, or factors that do not vary.

    Example:
        >>> grid = np.stack(np.meshgrid(range(5), range(5)), axis=-1).reshape(-1, 2).repeat(10, axis=0)
        >>> round(float(disentanglement(-3.0 * grid, grid, num_permutations=0).loc["mig", "value"]), 6)
        1.0
    """
    codes, factors = _checked(codes, factors)
    num_permutations = at_least("num_permutations", num_permutations, 0)
    if any(not isinstance(k, int) or not 0 <= k < factors.shape[1] for k in categorical):
        raise ValueError(
            f"categorical must be numbers of columns of factors, from 0 to {factors.shape[1] - 1}, got {categorical}"
        )
    generator = numpy_generator("shuffled codes", seed)
    levels = np.stack([np.unique(column, return_inverse=True)[1] for column in factors.T], axis=1)
    value = _scores(codes, factors, levels, categorical, seed)
    permutations = (generator.permutation(codes) for _ in range(num_permutations))
    shuffles = [_scores(permuted, factors, levels, categorical, seed) for permuted in permutations]
    table = pd.DataFrame({"value": value})
    table["chance"] = pd.DataFrame(shuffles).mean() if shuffles else np.nan
    table["chance_sd"] = pd.DataFrame(shuffles).std() if len(shuffles) > 1 else np.nan
    table["adjusted"] = (table["value"] - table["chance"]) / (1 - table["chance"])
    return table.rename_axis("metric")


def _checked(codes: Any, factors: Any) -> tuple[np.ndarray, np.ndarray]:
    codes, factors = np.asarray(codes, dtype=float), np.asarray(factors)
    if codes.ndim != 2 or factors.ndim != 2 or len(codes) != len(factors):
        raise ValueError(
            f"codes [N, D] and factors [N, F] (such as data.Sprites().factors) were expected, got {codes.shape} and "
            f"{factors.shape}"
        )
    if not np.isfinite(codes).all():
        raise ValueError("the codes hold numbers that are not finite")
    if not np.array_equal(factors, factors.astype(int)):
        raise ValueError("factors must be whole numbers, the level of each: code them first (pandas.factorize)")
    still = [k for k in range(factors.shape[1]) if len(np.unique(factors[:, k])) < 2]
    if factors.shape[1] < 2 or still:
        raise ValueError(
            f"at least 2 factors that vary are needed, got {factors.shape[1]}"
            + (f", of which {still} have one level only: leave them out" if still else "")
        )
    return codes, factors.astype(int)


def _scores(
    codes: np.ndarray, factors: np.ndarray, levels: np.ndarray, categorical: Sequence[int], seed: int
) -> Metrics:
    information = _information(codes, levels)
    return {
        "mig": _gap(information / [entropy(np.bincount(column)) for column in levels.T]),
        "sap": _gap(_predictability(codes, factors, levels, categorical)),
        **_dci(codes, levels, seed),
        "factor_vae": _factor_vae(codes, levels, seed),
        "modularity": _modularity(information),
    }


def _information(codes: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return the mutual information of every binned latent and every factor, ``[D, F]``, in nats."""
    binned = [_binned(code, max(BINS, int(factors.max()) + 1)) for code in codes.T]
    return np.array([[mutual_info_score(b, column) for column in factors.T] for b in binned])


def _binned(code: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin of every code. Bins have equal width, or one value each if there are no more values than bins."""
    values, place = np.unique(code, return_inverse=True)
    return place if len(values) <= bins else np.digitize(code, np.histogram_bin_edges(code, bins)[1:-1])


def _gap(matrix: np.ndarray) -> float:
    """Return the mean over factors of the largest entry less the second largest, from ``[D, F]``."""
    ordered = np.sort(np.vstack([matrix, np.zeros(matrix.shape[1])]), axis=0)  # zeros: the second of a single latent
    return float((ordered[-1] - ordered[-2]).mean())


def _predictability(
    codes: np.ndarray, factors: np.ndarray, levels: np.ndarray, categorical: Sequence[int]
) -> np.ndarray:
    matrix = np.zeros((codes.shape[1], factors.shape[1]))
    spread = codes.std(axis=0)
    for d in np.flatnonzero(spread > 0):
        code = (codes[:, d] - codes[:, d].mean()) / spread[d]
        for k, column in enumerate(factors.T):
            score = _separated(code, levels[:, k]) if k in categorical else np.corrcoef(code, column)[0, 1] ** 2
            matrix[d, k] = score
    return matrix


def _separated(code: np.ndarray, column: np.ndarray) -> float:
    """Return the balanced accuracy above chance of a linear classifier on one latent."""
    classifier = LogisticRegression(C=1e4, max_iter=1000, class_weight="balanced").fit(code[:, None], column)
    chance = 1 / (column.max() + 1)
    accuracy = balanced_accuracy_score(column, classifier.predict(code[:, None]))
    return float(max(accuracy - chance, 0) / (1 - chance))


def _dci(codes: np.ndarray, factors: np.ndarray, seed: int) -> Metrics:
    train, test = train_test_split(
        np.arange(len(codes)), test_size=0.3, random_state=library_seed("halves for forests", seed)
    )
    importance, accuracy = [], []
    for column in factors.T:
        forest = RandomForestClassifier(
            40, max_features=None, min_samples_leaf=2, max_samples=min(2000, len(train)),
            random_state=library_seed("forests", seed),
        ).fit(codes[train], column[train])  # fmt: skip
        importance.append(forest.feature_importances_)
        accuracy.append(forest.score(codes[test], column[test]))
    matrix = np.stack(importance, axis=1)  # [D, F]
    rows, columns = matrix.sum(1), matrix.sum(0)
    row_scores = [1 - entropy(row, base=matrix.shape[1]) if row.sum() else 0.0 for row in matrix]
    column_scores = [1 - entropy(c, base=max(len(c), 2)) if c.sum() else 0.0 for c in matrix.T]
    total = max(float(matrix.sum()), np.finfo(float).tiny)
    return {
        "dci_disentanglement": float(np.dot(rows, row_scores) / total),
        "dci_completeness": float(np.dot(columns, column_scores) / total),
        "dci_informativeness": float(np.mean(accuracy)),
    }


def _factor_vae(codes: np.ndarray, factors: np.ndarray, seed: int, groups: int = 1000, size: int = 64) -> float:
    generator = numpy_generator("groups of a factor", seed)
    spread = codes.var(axis=0)
    active = np.flatnonzero(spread > 0)
    if not len(active):
        return 1 / factors.shape[1]
    members = [[np.flatnonzero(column == level) for level in range(column.max() + 1)] for column in factors.T]
    votes = np.zeros((2, len(active), factors.shape[1]))
    for group in range(groups):
        k = generator.integers(factors.shape[1])
        same = members[k][factors[generator.integers(len(codes)), k]]
        sample = codes[generator.choice(same, size)][:, active]
        votes[group % 2, np.argmin(sample.var(axis=0) / spread[active]), k] += 1
    verdicts = votes[0].argmax(1)
    return float(votes[1][np.arange(len(active)), verdicts].sum() / votes[1].sum())


def _modularity(information: np.ndarray) -> float:
    """Return the mean over latents in use of 1 - (information on other factors) / (largest possible)."""
    most = information.max(1)
    rows = information[most > 1e-12]
    if not len(rows):
        return 0.0
    others = np.square(rows).sum(1) - np.square(rows.max(1))
    return float((1 - others / (np.square(rows.max(1)) * (rows.shape[1] - 1))).mean())
