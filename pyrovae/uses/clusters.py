"""Clusters of codes, each observation's membership over draws of its posterior, and how stable they are."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score
from sklearn.mixture import GaussianMixture

from pyrovae.common.checks import at_least, share
from pyrovae.common.progress import progress_bar
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.programs.streams import library_seed
from pyrovae.programs.types import Program
from pyrovae.uses.drawn_codes import drawn_codes
from pyrovae.uses.posterior import Posterior

METHODS = ("kmeans", "mixture", "hdbscan")
NOISE = -1
SURE = 0.9
SILHOUETTE = 2000  # observations of which the silhouette is computed

Partition = Callable[[np.ndarray, int], np.ndarray]  # codes [N, D] and a seed to cluster numbers [N], -1 for noise


@dataclass(frozen=True, repr=False)
class Clusters:
    """Clusters of N observations.

    Attributes:
        labels: cluster of each observation's posterior mean, ``[N]``, the largest cluster first; -1 where it is in none
            (noise).
        probability: share of the draws in which each observation is in each cluster, ``[N, K]``.
        stability: adjusted Rand index between each draw's clusters and those of the posterior means, ``[S]``; NaN where
            all observations are in one group.
        jaccard: each cluster's mean largest Jaccard index with any of each draw's clusters, ``[K]``: below 0.5 a
            cluster is dissolved, above 0.75 it is found again (Hennig 2007).
        silhouette: mean silhouette of the posterior means, of at most 2,000 observations; NaN with fewer than two
            clusters.
        latents: names of the latents that were used.
        index: names of the observations, ``[N]``.
        method: "kmeans", "mixture" or "hdbscan".
    """

    labels: np.ndarray
    probability: np.ndarray
    stability: np.ndarray
    jaccard: np.ndarray
    silhouette: float
    latents: list[str]
    index: np.ndarray
    method: str

    def table(self) -> pd.DataFrame:
        """Return one row per observation: its cluster and its probability, and the next most probable one's.

        -1 is noise, or a cluster of a draw without a counterpart.
        """
        none = (1 - self.probability.sum(1)).clip(0).round(12)
        everything, rows = np.column_stack([self.probability, none]), np.arange(len(self.labels))
        own = everything[rows, self.labels]  # the last column is that of noise, number -1
        everything[rows, self.labels] = -1
        after = everything.argmax(1)
        columns = {
            "cluster": self.labels, "probability": own,
            "next": np.where(after == self.probability.shape[1], NOISE, after),
            "next_probability": everything[rows, after].clip(0),
        }  # fmt: skip
        return pd.DataFrame(columns, index=self.index).rename_axis("datum")

    def sizes(self) -> pd.DataFrame:
        """Return one row per cluster: size, its expected size over the draws, Jaccard index, sure members.

        Sure members have a probability of at least 0.9.
        """
        names = range(self.probability.shape[1])
        columns = {
            "size": [int((self.labels == k).sum()) for k in names], "expected_size": self.probability.sum(0),
            "jaccard": self.jaccard, "sure": (self.probability >= SURE).sum(0),
        }  # fmt: skip
        return pd.DataFrame(columns).rename_axis("cluster")

    def summary(self) -> dict[str, float]:
        """Return numbers of observations, clusters, noise and unsure members, stability, and silhouette."""
        table = self.table()
        return {
            "num_data": len(table), "num_clusters": self.probability.shape[1],
            "noise": int((self.labels == NOISE).sum()), "unsure": int((table["probability"] < SURE).sum()),
            "stability": float(np.mean(self.stability)), "lowest_stability": float(np.min(self.stability)),
            "silhouette": self.silhouette,
        }  # fmt: skip

    def agreement(self, labels: Any) -> dict[str, float]:
        """Return the adjusted Rand index and the normalised mutual information with given labels, ``[N]``.

        Raises:
            ValueError: for labels of another number.
        """
        given = np.asarray(labels)
        if given.shape != self.labels.shape:
            raise ValueError(f"labels must be one per observation, [{len(self.labels)}], got {list(given.shape)}")
        return {
            "ari": float(adjusted_rand_score(given, self.labels)),
            "nmi": float(normalized_mutual_info_score(given, self.labels)),
        }

    def __repr__(self) -> str:
        result = self.summary()
        text = (
            f"{int(result['num_clusters'])} clusters of {len(self.labels)} observations ({self.method}, "
            f"{len(self.latents)} latents)"
        )
        if not np.isnan(result["stability"]):
            text += (
                f": over {len(self.stability)} posterior draws the adjusted Rand index with them is "
                f"{result['stability']:.2f}; {int(result['unsure'])} observations are in their cluster in less than "
                f"{SURE:.0%} of the draws"
            )
        dissolved = np.flatnonzero(self.jaccard < 0.5)
        if len(dissolved):
            text += f"; clusters {', '.join(map(str, dissolved))} DISSOLVE (Jaccard index below 0.5)"
        return text + (f"; {int(result['noise'])} are noise" if result["noise"] else "")


@shared_keywords(batch_size=BATCH_SIZE)
def cluster(
    model: Program,
    guide: Program,
    data: Any,
    num_clusters: int | None = None,
    *,
    method: str = "kmeans",
    min_cluster_size: int | None = None,
    site: str | None = None,
    least_activity: float = 0.01,
    num_draws: int = 20,
    posterior: Posterior | None = None,
    **options: Unpack[Options],
) -> Clusters:
    """Cluster the codes of data, and tell by draws of each posterior how sure that is.

    The posterior means are clustered, and so is each of S sets of posterior draws, by scikit-learn. A draw's clusters
    are matched to those of the means by the numbers of observations that they share. An observation's probability of
    being in a cluster is the share of the draws in which it is. The agreement of the draws' clusters with those of the
    means is the clusters' stability: how much of them the posteriors' spread leaves. A draw holds all of a posterior's
    spread and is clustered from scratch, so that clusters of the means may be better than their stability says. It does
    not say how they would change with other data, nor that there are gaps between them: a single cloud of narrow
    posteriors is cut in two stably.

    Source: Hennig, "Cluster-wise assessment of cluster stability", 2007; Hubert and Arabie, "Comparing partitions",
    1985; Campello, Moulavi and Sander, "Density-based clustering based on hierarchical density estimates", 2013.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, a table, or a data set.
        num_clusters: number of clusters K; "hdbscan" finds it by itself.
        method: "kmeans", "mixture" (of Gaussians with covariances of their own), or "hdbscan", which leaves
            observations in sparse regions to no cluster.
        min_cluster_size: smallest cluster of "hdbscan"; None: 10, or as many as are needed of a hundredth of the data.
        site: latent site; None: all of them, side by side.
        least_activity: latents whose posterior means make up less than this share of their variance are left out; they
            hold nothing of the data, and their draws are noise.
        num_draws: number of posterior draws S.
        posterior: draws of these data's posteriors (:func:`pyrovae.posterior`); None draws from the guide.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for an unknown method, a number of clusters that it does not take, a pair that breaks the contract,
            discrete latents, or no latent that holds anything.

    Example:
        >>> import torch
        >>> from pyrovae import guides, models
        >>> model, source = models.LinearGaussian(2, 5), torch.Generator().manual_seed(0)
        >>> x = torch.randn(60, 5, generator=source) + torch.arange(60)[:, None] % 2 * 20
        >>> cluster(model, guides.Exact(model), x, 2, progress=False).sizes()["size"].tolist()
        [30, 30]
    """
    least_activity = share("least_activity", least_activity, ends=True)
    seed = library_seed("clusters of codes", options["seed"])
    partition = _partition(method, num_clusters, min_cluster_size)
    all_codes = drawn_codes(model, guide, data, site=site, num_draws=num_draws, posterior=posterior, options=options)
    codes = all_codes.of(all_codes.kept(least_activity))
    if num_clusters is not None and num_clusters > len(codes.index):
        raise ValueError(f"{len(codes.index)} observations cannot be in {num_clusters} clusters")
    of_means = partition(codes.means, seed)
    with progress_bar(total=num_draws, label="cluster" if options["progress"] else None, unit="draws") as bar:
        of_draws = [_with(bar, partition(one, seed)) for one in codes.draws]
    return _clusters(codes.means, of_means, of_draws, codes.latents, codes.index, method)


def _partition(method: str, num_clusters: int | None, min_cluster_size: int | None) -> Partition:
    """Return a method that clusters codes.

    Raises:
        ValueError: for an unknown method, and for numbers that it does not take.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "hdbscan":
        if num_clusters is not None:
            raise ValueError(
                '"hdbscan" finds the number of clusters by itself: give min_cluster_size, or another method'
            )
        least = None if min_cluster_size is None else at_least("min_cluster_size", min_cluster_size, 2)

        def by_density(codes: np.ndarray, seed: int) -> np.ndarray:
            size = least or max(10, len(codes) // 100)
            if size > len(codes):
                raise ValueError(f"{len(codes)} observations hold no cluster of {size}: lower min_cluster_size")
            return np.asarray(HDBSCAN(min_cluster_size=size, copy=True).fit_predict(codes))

        return by_density
    if min_cluster_size is not None:
        raise ValueError(f'min_cluster_size belongs to "hdbscan": {method!r} takes num_clusters')
    if num_clusters is None:
        raise ValueError(f'say how many clusters {method!r} makes, num_clusters=; "hdbscan" finds the number by itself')
    number = at_least("num_clusters", num_clusters, 1)

    def into_many(codes: np.ndarray, seed: int) -> np.ndarray:
        if method == "kmeans":
            return np.asarray(KMeans(number, n_init=10, random_state=seed).fit_predict(codes))
        with warnings.catch_warnings():  # a mixture that goes on improving a little is a partition all the same
            warnings.simplefilter("ignore", ConvergenceWarning)
            return np.asarray(GaussianMixture(number, n_init=3, random_state=seed).fit_predict(codes))

    return into_many


def _with(bar: Any, value: np.ndarray) -> np.ndarray:
    bar.update(1)
    return value


def _clusters(
    means: np.ndarray, of_means: np.ndarray, of_draws: Iterable[np.ndarray], latents: list[str], index: np.ndarray,
    method: str,
) -> Clusters:  # fmt: skip
    """Match the clusters of draws to those of the means, and count."""
    reference = _by_size(of_means)
    count = int(reference.max()) + 1
    matched, jaccards, stability = [], [], []
    for labels in of_draws:
        own, jaccard = _matched(labels, reference, count)
        matched.append(own)
        jaccards.append(jaccard)
        stability.append(adjusted_rand_score(reference, labels) if len(np.unique(reference)) > 1 else np.nan)
    drawn = np.stack(matched)
    probability = np.stack([(drawn == k).mean(0) for k in range(count)], 1) if count else np.zeros((len(means), 0))
    return Clusters(
        reference, probability, np.array(stability), np.mean(jaccards, axis=0),
        _silhouette(means, reference), latents, index, method,
    )  # fmt: skip


def _by_size(labels: np.ndarray) -> np.ndarray:
    """Number clusters from the largest on; noise stays."""
    names, counts = np.unique(labels[labels != NOISE], return_counts=True)
    numbers = {int(name): rank for rank, name in enumerate(names[np.argsort(-counts, kind="stable")])}
    return np.array([numbers.get(int(label), NOISE) for label in labels])


def _matched(labels: np.ndarray, reference: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels in the reference's numbers, -1 where they have no counterpart, and each cluster's Jaccard index.

    Labels are matched one to one; the Jaccard index is the largest with any cluster of the labels.
    """
    names = np.unique(labels[labels != NOISE])
    if not len(names) or not count:
        return np.full(len(labels), NOISE), np.zeros(count)
    own, others = (np.stack([found == k for k in keys]) for found, keys in ((reference, range(count)), (labels, names)))
    shared = own.astype(float) @ others.T.astype(float)
    either = own.sum(1)[:, None] + others.sum(1)[None, :] - shared
    result = np.full(len(labels), NOISE)
    for k, column in zip(*linear_sum_assignment(-shared), strict=True):
        result[others[column]] = k
    return result, (shared / either).max(1)


def _silhouette(means: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean silhouette of evenly spaced observations that are in a cluster."""
    rows = np.flatnonzero(labels != NOISE)
    rows = rows[np.linspace(0, len(rows) - 1, min(SILHOUETTE, len(rows))).round().astype(int)] if len(rows) else rows
    number = len(np.unique(labels[rows]))
    return float(silhouette_score(means[rows], labels[rows])) if 2 <= number < len(rows) else float("nan")
