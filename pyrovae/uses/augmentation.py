"""New data around given ones, with their labels."""

from typing import Any, Unpack

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae.arviz.labels import refuse_beyond
from pyrovae.common.checks import at_least, flag
from pyrovae.data import Data, as_data
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords, without
from pyrovae.importance.question import ask
from pyrovae.priors.sphere import unit_sphere
from pyrovae.programs.sites import is_discrete, support_of
from pyrovae.programs.streams import library_seed, numpy_generator
from pyrovae.programs.types import Program
from pyrovae.uses.generation import decode, sample
from pyrovae.uses.space import covariates_of
from pyrovae.uses.values import Values

METHODS = ("posterior", "between")


class Augmented(Values):
    """New observations by site, ``[M, ...]``, each with the name of the observation that it was made from.

    Attributes:
        labels: labels of the new observations, ``[M]``, a tensor or, for labels that were given as anything else, an
            array; None where the data have none.
    """

    labels: Tensor | np.ndarray | None = None


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
    max_bytes: int = 4 * 2**30,
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
        labels: labels of the data, ``[N]``; None takes those of the set. -1 and what is missing is not known: such an
            observation belongs to no class.
        method: "posterior" or "between".
        draws: whether to draw x'; False returns the mean of p(x' | z).
        max_bytes: refuse new data that take more memory than this.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        Values by observed site, ``[M, ...]``, with ``.labels`` and, in ``.index``, the names of the observations that
        they were made from; ``.to_frame()`` is a table, where the model was fitted to one.

    Raises:
        ValueError: for an unknown method, labels of another number, ``per_class`` without labels, a label with a single
            observation for "between", or latents that are discrete there,
            or have no values between two (on a sphere); and for latents that are summed out.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5)
        >>> new = augment(model, guides.Exact(model), torch.zeros(7, 5), 3, progress=False)
        >>> new["x"].shape, new.index[:4].tolist()
        (torch.Size([21, 5]), [0, 0, 0, 1])
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if per_class is not None:
        at_least("per_class", per_class, 1)
    num, draws, between = at_least("num", num, 1), flag("draws", draws), method == "between"
    data = as_data(data, model, guide).unweighted().fixed()
    known = _labels(data, labels)
    classes = None if known is None else _numbered(known)
    source = numpy_generator("augmentation", options["seed"])
    rows = _sources(classes, len(data), num, per_class, source)
    refuse_beyond(max_bytes, len(rows) * sum(8 * t[0].numel() for t in data.tensors))
    latents, covariates = _latents(model, guide, data.subset(rows), "augment", options, between)
    if between:
        everyone = np.zeros(len(data), dtype=int) if classes is None else classes
        partners = data.subset(_partners(rows, everyone, known, source))
        other: Any = {**options, "seed": library_seed("partners", options["seed"])}
        others, _ = _latents(model, guide, partners, "partners", other, between)
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
    made.labels = None if known is None else _like(labels, known[rows])
    return made


def _like(given: Any, labels: np.ndarray) -> Any:
    """Return labels as a tensor, or, where they were given as anything else, as an array."""
    return torch.from_numpy(labels) if given is None or isinstance(given, Tensor) else labels


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
    return given


def _numbered(labels: np.ndarray) -> np.ndarray:
    """Return the number of each label's class, ``[N]``; -1 where a label is not known (-1, NaN, None)."""
    codes = pd.factorize(labels)[0]
    return np.where(labels == -1, -1, codes) if labels.dtype.kind in "iuf" else codes


def _sources(
    classes: np.ndarray | None, count: int, num: int, per_class: int | None, source: np.random.Generator
) -> np.ndarray:
    """Return the row that each new observation is made from.

    Raises:
        ValueError: for ``per_class`` beside ``num``, or without labels.
    """
    if per_class is None:
        return np.repeat(np.arange(count), num)
    if num != 1:
        raise ValueError(f"give num, new observations for each one, or per_class, for each label, not both: got {num}")
    if classes is None:
        raise ValueError("per_class takes labels, and the data have none: give labels=")
    known = np.unique(classes[classes >= 0])
    return np.concatenate([source.choice(np.flatnonzero(classes == label), per_class) for label in known])


def _partners(rows: np.ndarray, classes: np.ndarray, names: Any, source: np.random.Generator) -> np.ndarray:
    """Return another row of the same class for each row.

    Raises:
        ValueError: for a class that a single observation is in, or one that is not known.
    """
    partners = np.empty_like(rows)
    for label in np.unique(classes[rows]):
        members, own = np.flatnonzero(classes == label), np.flatnonzero(classes[rows] == label)
        if label < 0:
            raise ValueError(f'"between" takes a label for every observation, and {len(members)} lack one')
        if len(members) < 2:
            raise ValueError(f'"between" takes two observations of every label, and label {names[members[0]]} has one')
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
        if question.layout.summed:
            raise ValueError(
                f"latent site {question.layout.summed[0]!r} is summed out, so that data cannot be drawn given it: "
                "sample it in the guide"
            )
        for part in question.particles(1, label):
            for name in question.layout.latents:
                support = support_of(part.model_trace.nodes[name]["fn"])
                if between and (is_discrete(part.model_trace.nodes[name]["fn"]) or support is unit_sphere):
                    raise ValueError(f"latent site {name!r} has no values between two: it is of support {support}")
                parts.setdefault(name, []).append(part.values(part.guide_trace.nodes[name])[0].cpu())
        covariates = covariates_of(question, question.pair.given(question.data.batch(slice(0, len(data)))))
    return {name: torch.cat(values) for name, values in parts.items()}, covariates
