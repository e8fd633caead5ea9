"""New data around given ones, with their labels."""

from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from pyrovae.common.checks import at_least, flag
from pyrovae.data import Data, as_data
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords, without
from pyrovae.importance.question import ask
from pyrovae.programs.sites import is_discrete
from pyrovae.programs.streams import numpy_generator
from pyrovae.programs.types import Program
from pyrovae.uses.generation import decode, sample
from pyrovae.uses.space import covariates_of
from pyrovae.uses.values import Values

METHODS = ("posterior", "between")


class Augmented(Values):
    """New observations by site, ``[M, ...]``, each with the name of the observation that it was made from.

    Attributes:
        labels: labels of the new observations, ``[M]``; None where the data have none.
    """

    labels: Tensor | None = None


@shared_keywords(batch_size=BATCH_SIZE)
def augment(
    model: Program,
    guide: Program,
    data: Any,
    num: int = 1,
    *,
    per_class: int | None = None,
    labels: Any = None,
    method: str = "posterior",
    draws: bool = True,
    **options: Unpack[Options],
) -> Augmented:
    """Make new data around given ones.

    - "posterior": z ~ q(z | x), then x' ~ p(x' | z): what could have been seen in the place of x.
    - "between": z is a uniformly drawn point between draws of q(z | x) and of q(z | another x of the same label).

    A new observation has the label and the covariates of the one that it was made from. Whether a classifier gains from
    it has to be seen on real data (``examples/augmentation.py``).

    Source: Chadebec, Thibeau-Sutre, Burgos and Allassonniere, "Data augmentation in high dimensional low sample size
    setting using a geometry-based variational autoencoder", 2022; DeVries and Taylor, "Dataset augmentation in feature
    space", 2017.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, a table, or a data set.
        num: number of new observations for each one that is given.
        per_class: number of new observations for each label in place of ``num``, each from one that is drawn at random
            among those of its label: classes become equally large.
        labels: labels of the data, ``[N]``; None takes those of the set.
        method: "posterior" or "between".
        draws: whether to draw x'; False returns the mean of p(x' | z).
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        Values by observed site, ``[M, ...]``, with ``.labels`` and, in ``.index``, the names of the observations that
        they were made from; ``.to_frame()`` is a table, where the model was fitted to one.

    Raises:
        ValueError: for an unknown method, labels of another number, ``per_class`` without labels, a label with a single
            observation for "between", or latents that are discrete there.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5)
        >>> new = augment(model, guides.Exact(model), torch.zeros(7, 5), 3, progress=False)
        >>> new["x"].shape, list(new.index[:4])
        (torch.Size([21, 5]), [0, 0, 0, 1])
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    num, draws, between = at_least("num", num, 1), flag("draws", draws), method == "between"
    data = as_data(data, model, guide).unweighted().fixed()
    known = _labels(data, labels)
    source = numpy_generator("augmentation", options["seed"])
    rows = _sources(known, len(data), num, per_class, source)
    latents, covariates = _latents(model, guide, data.subset(rows), "augment", options, between)
    if between:
        other: Any = {**options, "seed": options["seed"] + 1}
        partners = _partners(rows, known, source)
        others, _ = _latents(model, guide, data.subset(partners), "partners", other, between)
        t = torch.from_numpy(source.random(len(rows)))
        latents = {
            name: torch.lerp(z, others[name], t.to(z).reshape(-1, *[1] * (z.dim() - 1))) for name, z in latents.items()
        }
    settings = without(options, "batch_size")
    values = (
        sample(model, len(rows), *covariates, latents=latents, **settings) if draws
        else decode(model, latents, *covariates, **settings)
    )  # fmt: skip
    made = Augmented(
        {name: values[name] for name in values.observed}, values.encoding, data.index[rows], values.observed
    )
    made.labels = None if known is None else torch.from_numpy(known[rows])
    return made


def _labels(data: Data, labels: Any) -> np.ndarray | None:
    """Return the labels ``[N]``, given or the data's own.

    Raises:
        ValueError: for labels of another number.
    """
    if labels is None:
        return None if data.labels is None else data.labels.cpu().numpy()
    given = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if given.shape != (len(data),):
        raise ValueError(f"labels must be one per observation, [{len(data)}], got {list(given.shape)}")
    return np.unique(given, return_inverse=True)[1] if given.dtype.kind not in "iu" else given


def _sources(
    labels: np.ndarray | None, count: int, num: int, per_class: int | None, source: np.random.Generator
) -> np.ndarray:
    """Return the row that each new observation is made from.

    Raises:
        ValueError: for ``per_class`` beside ``num``, or without labels.
    """
    if per_class is None:
        return np.repeat(np.arange(count), num)
    per_class = at_least("per_class", per_class, 1)
    if num != 1:
        raise ValueError(f"give num, new observations for each one, or per_class, for each label, not both: got {num}")
    if labels is None:
        raise ValueError("per_class takes labels, and the data have none: give labels=")
    return np.concatenate([source.choice(np.flatnonzero(labels == label), per_class) for label in np.unique(labels)])


def _partners(rows: np.ndarray, labels: np.ndarray | None, source: np.random.Generator) -> np.ndarray:
    """Return another row of the same label for each row.

    Raises:
        ValueError: for a label that a single observation has.
    """
    classes = np.zeros(rows.max() + 1, dtype=int) if labels is None else labels
    partners = np.empty_like(rows)
    for label in np.unique(classes[rows]):
        members, own = np.flatnonzero(classes == label), np.flatnonzero(classes[rows] == label)
        if len(members) < 2:
            raise ValueError(f'"between" takes two observations of every label, and label {label} has one')
        place = np.searchsorted(members, rows[own])  # any other member is as probable
        partners[own] = members[(place + source.integers(1, len(members), size=len(own))) % len(members)]
    return partners


def _latents(
    model: Program, guide: Program, data: Data, label: str, options: Options, between: bool
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """Return one draw of each observation's latents by site, and the covariates.

    Raises:
        ValueError: for a discrete latent, if there are to be points between two values.
    """
    parts: dict[str, list[Tensor]] = {}
    with ask(model, guide, data, **options) as question:
        question.layout.require_latents()
        for part in question.particles(1, label):
            for name in question.layout.latents:
                if between and is_discrete(part.model_trace.nodes[name]["fn"]):
                    raise ValueError(f"latent site {name!r} is discrete, so that there is nothing between two values")
                parts.setdefault(name, []).append(part.values(part.guide_trace.nodes[name])[0].cpu())
        covariates = covariates_of(question, question.pair.given(question.data.batch(slice(0, len(data)))))
    return {name: torch.cat(values) for name, values in parts.items()}, covariates
