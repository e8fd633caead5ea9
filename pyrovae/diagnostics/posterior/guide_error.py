"""The guide compared with a reference posterior, observation by observation."""

from typing import Any, Unpack

import numpy as np
import pandas as pd
from sklearn.base import clone
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold, cross_val_score

from pyrovae.common.checks import at_least
from pyrovae.diagnostics.predictive.draws import Draws, draw
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.importance.question import ask
from pyrovae.programs.streams import library_seed
from pyrovae.programs.types import Program

FOLDS = 5


@shared_keywords(batch_size=BATCH_SIZE)
def guide_error(
    model: Program,
    guide: Program,
    data: Any,
    reference: Any,
    *,
    num_draws: int = 1000,
    classifier: Any = None,
    **options: Unpack[Options],
) -> pd.DataFrame:
    """Compare draws of q(z | x) with a reference sample of p(z | x), for every observation.

    All latents of an observation are compared together, in their own supports; constant ones are left out.

    Source: Lopez-Paz and Oquab, "Revisiting classifier two-sample tests", 2017, for the classifier test.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set: the same data, in the same order, as for ``reference``.
        reference: result of :func:`pyrovae.hmc`, or any ArviZ object whose ``posterior`` has the latents by name, with
            dimensions ``chain``, ``draw``, ``datum``, ....
        num_draws: number of draws of the guide per observation; for the classifier the reference is thinned to at most
            this number.
        classifier: a scikit-learn classifier; None: quadratic discriminant analysis, which detects differences in
            means, scales and correlations.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        One row per observation:

        - ``mean``: root mean square over the latents of (guide's mean - reference's) / reference's standard deviation;
        - ``scale``: geometric mean of the guide's standard deviation / the reference's; below 1 the guide is
          overconfident;
        - ``correlation``: root mean square difference of the correlations; NaN for one latent;
        - ``accuracy``: cross-validated accuracy of the classifier that tells the draws apart: 0.5 where it cannot, 1
          where it always can.

        Means of n draws differ by about sqrt(2 / n) standard deviations if both come from the same distribution.

    Raises:
        ValueError: for a reference of other data or other latents, and as :func:`pyrovae.evaluate` does.
    """
    at_least("num_draws", num_draws, 2 * FOLDS)
    parts: dict[int, list[np.ndarray]] = {}
    with ask(model, guide, data, **options) as question:
        exact = _reference(reference, question.layout.latents, len(question.data))
        observed = getattr(reference, "observed_data", None)
        for part in draw(question, num_draws, ("posterior",), "draws"):
            _same_data(observed, part)
            sites = [part.groups["posterior"][name] for name in question.layout.latents]
            flat = [site.reshape(*site.shape[:2], -1).double().numpy() for site in sites]
            parts.setdefault(part.indices.start, []).append(np.concatenate(flat, axis=2))
    approximate = np.concatenate([np.concatenate(own, axis=0) for own in parts.values()], axis=1)
    estimator = classifier or QuadraticDiscriminantAnalysis(reg_param=1e-3)
    rows = [_compared(approximate[:, i], exact[:, i], clone(estimator), question.seed) for i in range(exact.shape[1])]
    return pd.DataFrame(rows, columns=["mean", "scale", "correlation", "accuracy"]).rename_axis("datum")


def _reference(reference: Any, latents: tuple[str, ...], size: int) -> np.ndarray:
    """Return the reference's draws of all latents, ``[draws, data, latents]``."""
    posterior = getattr(reference, "posterior", None)
    if posterior is None or not all(name in posterior for name in latents):
        raise ValueError(f"the reference must have a group posterior with the latents {list(latents)}: see pyrovae.hmc")
    values = [np.asarray(posterior[name]) for name in latents]
    if any(v.ndim < 3 or v.shape[2] != size for v in values):
        raise ValueError(
            f"the reference has draws of shapes {[v.shape for v in values]}, but there are {size} data: it must be of "
            "the same data, with dimensions chain, draw, observation, ..."
        )
    if values[0].shape[0] * values[0].shape[1] < 2 * FOLDS:
        raise ValueError(f"the reference has {values[0].shape[:2]} chains and draws, but {2 * FOLDS} draws are needed")
    return np.concatenate([v.reshape(v.shape[0] * v.shape[1], size, -1) for v in values], axis=2).astype(float)


def _same_data(observed: Any, part: Draws) -> None:
    """Refuse a reference that was made with other data, if it contains its data."""
    for name, value in part.observed.items():
        if observed is None or name not in observed:
            continue
        expected = np.asarray(observed[name])[part.indices.start : part.indices.stop]
        if expected.shape != tuple(value.shape) or not np.allclose(expected, value.numpy(), atol=1e-5, equal_nan=True):
            raise ValueError(
                f"the reference was made with other data than data {part.indices.start} to {part.indices.stop - 1} "
                "here: make it with the same, in the same order"
            )


def _compared(guide: np.ndarray, exact: np.ndarray, classifier: Any, seed: int) -> tuple[float, float, float, float]:
    """Compare the draws of one observation, ``[draws, latents]`` each."""
    moving = exact.std(0) > 0  # leaves out constant entries, such as those of a matrix
    guide, exact = guide[:, moving], exact[:, moving]
    scale = exact.std(0)
    mean = np.sqrt((((guide.mean(0) - exact.mean(0)) / scale) ** 2).mean())
    ratio = np.exp(np.log(guide.std(0).clip(1e-12) / scale).mean())
    above = np.triu_indices(exact.shape[1], 1)
    difference = (_correlation(guide) - _correlation(exact))[above]
    correlation = np.sqrt((difference**2).mean()) if len(difference) else np.nan
    count = min(len(guide), len(exact))
    thinned = [d[np.linspace(0, len(d) - 1, count).astype(int)] for d in (guide, exact)]
    draws = (np.concatenate(thinned) - exact.mean(0)) / scale
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=library_seed("folds of draws", seed))
    accuracy = cross_val_score(classifier, draws, np.repeat([0, 1], count), cv=folds).mean()
    return float(mean), float(ratio), float(correlation), float(accuracy)


def _correlation(draws: np.ndarray) -> np.ndarray:
    return np.atleast_2d(np.corrcoef(draws.T))
