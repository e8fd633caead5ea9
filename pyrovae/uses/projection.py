"""Codes in the plane, with the spread that each posterior has there."""

from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from pyrovae.common.checks import share
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.programs.isolation import importing
from pyrovae.programs.streams import library_seed
from pyrovae.programs.types import Program
from pyrovae.uses.drawn_codes import drawn_codes
from pyrovae.uses.posterior import Posterior

METHODS = ("pca", "tsne", "umap")
PERPLEXITY, NEIGHBOURS = 30, 5


@dataclass(frozen=True, repr=False)
class Projection:
    """N observations in the plane.

    Attributes:
        points: places of the posterior means, ``[N, 2]``.
        draws: places of draws of each posterior, ``[S, N, 2]``.
        explained: shares of the posterior means' variance along the two axes, of "pca"; None else.
        latents: names of the latents that were used.
        index: names of the observations, ``[N]``.
        method: "pca", "tsne" or "umap".
    """

    points: np.ndarray
    draws: np.ndarray
    explained: np.ndarray | None
    latents: list[str]
    index: np.ndarray
    method: str

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of each observation's draws in the plane, ``[N, 2, 2]``."""
        centred = self.draws - self.draws.mean(0)
        result: np.ndarray = np.einsum("snd,sne->nde", centred, centred) / (len(centred) - 1)
        return result

    def __repr__(self) -> str:
        shares = "" if self.explained is None else f", which hold {self.explained.sum():.0%} of the variance"
        return (
            f"{len(self.points)} observations in the plane by {self.method} of {len(self.latents)} latents{shares}, "
            f"each with {len(self.draws)} posterior draws"
        )

    def table(self) -> pd.DataFrame:
        """Return one row per observation: x, y, their posterior standard deviations, and correlation."""
        covariance = self.covariance
        deviation = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
        product = deviation.prod(1)
        correlation = np.divide(covariance[:, 0, 1], product, out=np.zeros_like(product), where=product > 0)
        columns = {
            "x": self.points[:, 0], "y": self.points[:, 1], "x_sd": deviation[:, 0], "y_sd": deviation[:, 1],
            "correlation": correlation,
        }  # fmt: skip
        return pd.DataFrame(columns, index=self.index).rename_axis("datum")


@shared_keywords(batch_size=BATCH_SIZE)
def project(
    model: Program,
    guide: Program,
    data: Any,
    *,
    method: str = "pca",
    site: str | None = None,
    least_activity: float = 0.01,
    num_draws: int = 50,
    posterior: Posterior | None = None,
    **options: Unpack[Options],
) -> Projection:
    """Project the codes of data to the plane, and draws of each posterior with them.

    - "pca": principal components of the posterior means; draws are projected alike, so that their spread is that of
      the posterior in the plane.
    - "tsne": t-SNE of the posterior means, by scikit-learn. It places no further points: a draw is placed at the
      weighted mean of the five nearest posterior means' places, so that spread in the plane is a rough guide only.
    - "umap": UMAP of the posterior means, which places draws by itself; takes the package umap-learn.

    Distances in the plane of the last two are not those of the latents.

    Source: van der Maaten and Hinton, "Visualizing data using t-SNE", 2008; McInnes, Healy and Melville, "UMAP:
    uniform manifold approximation and projection for dimension reduction", 2018.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, a table, or a data set; at least 4 observations.
        method: "pca", "tsne" or "umap".
        site: latent site; None: all of them, side by side.
        least_activity: latents whose posterior means make up less than this share of their variance over the data are
            left out.
        num_draws: number of posterior draws S.
        posterior: draws of these data's posteriors (:func:`pyrovae.posterior`); None draws from the guide.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for an unknown method, too few data, a pair that breaks the contract, discrete latents, or no
            latent that holds anything.
        ImportError: for "umap" without umap-learn.

    Example:
        >>> from pyrovae import guides, models
        >>> import torch
        >>> model = models.LinearGaussian(2, 5)
        >>> project(model, guides.Exact(model), torch.arange(150.0).sin().reshape(30, 5), progress=False).draws.shape
        (50, 30, 2)
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    umap = _umap() if method == "umap" else None
    least_activity = share("least_activity", least_activity, ends=True)
    found = drawn_codes(model, guide, data, site=site, num_draws=num_draws, posterior=posterior, options=options)
    if len(found.index) < 4:
        raise ValueError(f"a plane of codes takes at least 4 observations, got {len(found.index)}")
    codes = found.of(found.kept(least_activity))
    means, size = codes.means, codes.draws.shape[-1]
    flat = codes.draws.reshape(-1, size)
    seed = library_seed("projection of codes", options["seed"])
    explained = None
    if method == "pca" or size == 1:
        points, places, explained = _by_components(means, flat)
        method = "pca"
    elif method == "tsne":
        perplexity = min(PERPLEXITY, (len(means) - 1) / 3)
        points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(means)
        places = _between_neighbours(means, points, flat)
    else:
        mapper = umap.UMAP(n_neighbors=min(15, len(means) - 1), random_state=seed, n_jobs=1)  # type: ignore[union-attr]
        points, places = mapper.fit_transform(means), mapper.transform(flat)
    draws = places.reshape(len(codes.draws), len(means), 2)
    return Projection(np.asarray(points, dtype=float), draws, explained, codes.latents, codes.index, method)


def _by_components(means: np.ndarray, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return places of means and draws along the first two components; a single latent has zeros beside it."""
    if means.shape[1] == 1:
        points, places = (np.column_stack([values[:, 0], np.zeros(len(values))]) for values in (means, flat))
        return points, places, np.array([1.0, 0.0])
    components = PCA(2).fit(means)
    return components.transform(means), components.transform(flat), components.explained_variance_ratio_


def _between_neighbours(means: np.ndarray, points: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """Return each draw's place, the mean of the places of the nearest means, weighted by inverse squared distance."""
    distances, rows = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(means))).fit(means).kneighbors(flat)
    weights = 1 / np.maximum(distances, 1e-12) ** 2
    places: np.ndarray = (points[rows] * (weights / weights.sum(1, keepdims=True))[..., None]).sum(1)
    return places


def _umap() -> Any:
    try:
        with importing():
            import umap
    except ImportError:
        raise ImportError('method="umap" takes the package umap-learn: pip install umap-learn, or use "tsne"') from None
    return umap
