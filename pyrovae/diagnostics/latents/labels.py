"""What codes tell about labels that they were not fitted to: clusters, neighbours, a linear probe."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from pyrovae.common.checks import at_least
from pyrovae.programs.streams import library_seed, numpy_generator

FOLDS, NEIGHBOURS = 5, 5


def label_scores(codes: Any, labels: Any, *, num_resamples: int = 200, seed: int = 0) -> pd.DataFrame:
    """Score codes against labels, by clusters found without them and by classifiers trained on some of them.

    - ``cluster_ari``, ``cluster_nmi``, ``cluster_accuracy``: adjusted Rand index, normalised mutual information, and
      the share of observations in the cluster matched to their label, for k-means with as many clusters as labels;
    - ``neighbour_accuracy``: accuracy of the 5 nearest codes, cross-validated;
    - ``probe_accuracy``: accuracy of a logistic regression, cross-validated;
    - ``majority``: share of the commonest label, the baseline for an accuracy.

    Codes are standardised, so that their scale does not matter.

    Source: Hubert and Arabie, "Comparing partitions", 1985; Alain and Bengio, "Understanding intermediate layers using
    linear classifier probes", 2016.

    Args:
        codes: codes ``[N, D]``, as :func:`pyrovae.codes` returns them.
        labels: label of every observation, ``[N]``; at least 2 different labels, each of at least 5 observations.
        num_resamples: number of bootstrap resamples for the errors, given clusters and predictions.
        seed: random seed of clusters, folds and resamples.

    Returns:
        One row per score: ``value`` and ``se``, its standard error over the data.

    Raises:
        ValueError: for codes and labels of other shapes, codes that are not finite, or labels too rare to
            cross-validate.
    """
    codes, labels = np.asarray(codes, dtype=float), np.asarray(labels)
    if codes.ndim != 2 or labels.shape != (len(codes),):
        raise ValueError(f"codes [N, D] and labels [N] were expected, got {codes.shape} and {labels.shape}")
    if not np.isfinite(codes).all():
        raise ValueError("the codes hold numbers that are not finite")
    num_resamples = at_least("num_resamples", num_resamples, 2)
    names, truth, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(names) < 2 or counts.min() < FOLDS:
        raise ValueError(f"at least 2 labels of at least {FOLDS} data each are needed, got counts {counts.tolist()}")
    scaled = StandardScaler().fit_transform(codes)
    clusters = KMeans(len(names), n_init=10, random_state=library_seed("clusters", seed)).fit_predict(scaled)
    cluster_labels = _matched(clusters, truth)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=library_seed("folds of labels", seed))
    neighbour_labels = cross_val_predict(KNeighborsClassifier(NEIGHBOURS), scaled, truth, cv=folds)
    probe_labels = cross_val_predict(LogisticRegression(max_iter=2000), scaled, truth, cv=folds)

    def scores(rows: np.ndarray) -> dict[str, float]:
        true = truth[rows]
        return {
            "cluster_ari": adjusted_rand_score(true, clusters[rows]),
            "cluster_nmi": normalized_mutual_info_score(true, clusters[rows]),
            "cluster_accuracy": float((cluster_labels[rows] == true).mean()),
            "neighbour_accuracy": float((neighbour_labels[rows] == true).mean()),
            "probe_accuracy": float((probe_labels[rows] == true).mean()),
            "majority": float(np.bincount(true).max() / len(true)),
        }

    generator = numpy_generator("resampled labels", seed)
    resamples = pd.DataFrame([scores(generator.integers(len(truth), size=len(truth))) for _ in range(num_resamples)])
    table = pd.DataFrame({"value": scores(np.arange(len(truth))), "se": resamples.std()})
    return table.rename_axis("score")


def _matched(clusters: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return for every observation the label that the best one-to-one match gives to its cluster."""
    table = contingency_matrix(truth, clusters)
    rows, columns = linear_sum_assignment(-table)
    label = np.full(table.shape[1], -1)
    label[columns] = rows
    return np.asarray(label[clusters])
