"""Ways through the space of the latents: between two data, along one latent, along an attribute, and exchanges."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import pandas as pd
import torch
from torch import Tensor

from pyrovae.common.checks import at_least
from pyrovae.data import as_data
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords, without
from pyrovae.importance.question import Question, ask
from pyrovae.programs.sites import is_discrete
from pyrovae.programs.types import Program
from pyrovae.uses.generation import decode
from pyrovae.uses.prior_space import OwnSpace, own_space
from pyrovae.uses.values import Values

PATHS = ("straight", "spherical", "prior")


@shared_keywords(batch_size=BATCH_SIZE)
def interpolate(
    model: Program,
    guide: Program,
    one: Any,
    other: Any,
    num: int = 9,
    *,
    path: str = "straight",
    num_draws: int = 100,
    **options: Unpack[Options],
) -> Values:
    """Return decoded means on the way between the codes of two data.

    The codes are means of q(z | x). Covariates are those of ``one``.

    - "straight": (1 - t) z_one + t z_other.
    - "spherical": along the great circle through both, with their lengths interpolated, as suits a Gaussian prior of
      many latents, whose mass lies near a sphere.
    - "prior": straight in the space in which a prior starts, and back, so that the way goes where the prior has its
      mass: the base of a flow (a transformed distribution); for a mixture of Gaussians (also a VampPrior's) the normal
      scores of each coordinate given those before it, which depend on the order of the coordinates.

    Source: White, "Sampling generative networks", 2016, for the great circle; Rosenblatt, "Remarks on a multivariate
    transformation", 1952, for the normal scores.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        one: M observations, where the way begins: a tensor, a tuple of tensors, a table, or a data set.
        other: M observations, where it ends.
        num: number of points, both ends included.
        path: "straight", "spherical" or "prior".
        num_draws: number of draws per code.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        Means by observed site, ``[num, M, ...]``, and the latents on the way by their sites.

    Raises:
        ValueError: for an unknown path, different numbers of data, latents that are discrete, and "prior" where the
            prior is neither a flow nor a mixture.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5)
        >>> way = interpolate(model, guides.Exact(model), torch.zeros(3, 5), torch.ones(3, 5), progress=False)
        >>> way["x"].shape
        torch.Size([9, 3, 5])
    """
    num = at_least("num", num, 2)
    if path not in PATHS:
        raise ValueError(f"path must be one of {', '.join(PATHS)}, got {path!r}")
    first, covariates, spaces = _codes(model, guide, one, num_draws, options, path == "prior")
    last, _, _ = _codes(model, guide, other, num_draws, options)
    sizes = [len(next(iter(codes.values()))) for codes in (first, last)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"a way leads from each observation to another: got {sizes[0]} and {sizes[1]} data")
    t = torch.linspace(0, 1, num, device="cpu")
    way = {name: _between(first[name], last[name], t, path, spaces.get(name)) for name in first}
    return _decoded(model, way, covariates, options)


@shared_keywords(batch_size=BATCH_SIZE)
def traverse(
    model: Program,
    guide: Program,
    data: Any,
    latent: Any,
    values: Sequence[float] | Tensor,
    *,
    num_draws: int = 100,
    **options: Unpack[Options],
) -> Values:
    """Return decoded means with one latent at given values, and all others at the code of each observation.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: M observations: a tensor, a tuple of tensors, a table, or a data set.
        latent: number of the latent, where there is one site; or the name of a site of one latent, or a pair of a
            site's name and the latent's number.
        values: V values that the latent takes.
        num_draws: number of draws per code.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        Means by observed site, ``[V, M, ...]``, and the latents by their sites.

    Raises:
        ValueError: for a latent that the pair does not have.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5)
        >>> traverse(model, guides.Exact(model), torch.zeros(3, 5), 1, [-2, 0, 2], progress=False)["x"].shape
        torch.Size([3, 3, 5])
    """
    codes, covariates, _ = _codes(model, guide, data, num_draws, options)
    site, number = _chosen(latent, codes)
    numbers = torch.as_tensor(values, dtype=codes[site].dtype, device="cpu").flatten()
    if not len(numbers):
        raise ValueError("values is empty: give at least one value of the latent")
    way = {name: code.expand(len(numbers), *code.shape).clone() for name, code in codes.items()}
    flat = way[site].flatten(2) if way[site].dim() > 2 else way[site][..., None]
    flat[..., number] = numbers[:, None]
    way[site] = flat.reshape(way[site].shape)
    return _decoded(model, way, covariates, options)


@shared_keywords(batch_size=BATCH_SIZE)
def attribute(
    model: Program,
    guide: Program,
    data: Any,
    labels: Any = None,
    *,
    num_draws: int = 100,
    **options: Unpack[Options],
) -> pd.DataFrame:
    """Return the direction of an attribute among the codes: their mean with it, less their mean without it.

    Add it to a code, ``z + a * vector``, and decode it (:func:`pyrovae.decode`).

    Source: Larsen, Sonderby, Larochelle and Winther, "Autoencoding beyond pixels using a learned similarity metric",
    2016.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, a table, or a data set.
        labels: whether each observation has the attribute, ``[N]``; None takes the labels of the set, of which there
            must be two.
        num_draws: number of draws per code.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        One row per latent, in the order of the sites: ``estimate`` and ``se``, its standard error over the data.

    Raises:
        ValueError: for labels of another length or of other than two kinds, with two observations each.
    """
    data = as_data(data, model, guide)
    labels = data.labels if labels is None else torch.as_tensor(labels, device="cpu")
    if labels is None:
        raise ValueError("the data have no labels: give labels=, true where an observation has the attribute")
    labels = labels.cpu()
    kinds = labels.unique()
    if labels.shape != (len(data),) or len(kinds) != 2:
        raise ValueError(
            f"labels must be of two kinds, one per observation, [{len(data)}], got {list(labels.shape)} of {len(kinds)}"
        )
    codes, _, _ = _codes(model, guide, data, num_draws, options)
    flat = torch.cat([code.reshape(len(data), -1).double() for code in codes.values()], 1)
    without_it, with_it = (flat[labels == kind] for kind in kinds)
    if min(len(without_it), len(with_it)) < 2:
        raise ValueError("at least two observations of each kind are needed for an error")
    variance = with_it.var(0) / len(with_it) + without_it.var(0) / len(without_it)
    names = [f"{name}[{k}]" for name, code in codes.items() for k in range(code[0].numel())]
    columns = {"estimate": (with_it.mean(0) - without_it.mean(0)).numpy(), "se": variance.sqrt().numpy()}
    return pd.DataFrame(columns, index=names).rename_axis("latent")


@shared_keywords(batch_size=BATCH_SIZE)
def exchange(
    model: Program,
    guide: Program,
    one: Any,
    other: Any,
    *,
    sites: Sequence[str] = (),
    num_draws: int = 100,
    **options: Unpack[Options],
) -> Values:
    """Return decoded means with some latents of ``one``, and the other latents and the covariates of ``other``.

    With a conditional model, whose code holds what its covariates do not say, all latents are those of ``one`` and only
    the covariates are exchanged: the style of one with the content of the other. With a layered model, name the layers.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        one: M observations: a tensor, a tuple of tensors, a table, or a data set.
        other: M observations.
        sites: latent sites that are taken from ``one``; none means all.
        num_draws: number of draws per code.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        Means by observed site, ``[M, ...]``, and the latents by their sites.

    Raises:
        ValueError: for a site that is no latent, and for different numbers of data.
    """
    (first, _, _), (last, covariates, _) = (_codes(model, guide, data, num_draws, options) for data in (one, other))
    taken = list(sites) or list(first)
    if unknown := [name for name in taken if name not in first]:
        raise ValueError(f"site {unknown[0]!r} is no latent: the model has {', '.join(first)}")
    if len(next(iter(first.values()))) != len(next(iter(last.values()))):
        raise ValueError("each observation is exchanged with another: give as many of one as of the other")
    latents = {name: first[name] if name in taken else last[name] for name in first}
    return _decoded(model, latents, covariates, options)


def _codes(
    model: Program, guide: Program, data: Any, num_draws: int, options: Options, with_spaces: bool = False
) -> tuple[dict[str, Tensor], tuple[Tensor, ...], dict[str, OwnSpace]]:
    """Return the codes by site, ``[M, ...]``, the covariates, and, on request, the spaces in which priors start."""
    num_draws = at_least("num_draws", num_draws, 1)
    sums: dict[str, list[Tensor]] = {}
    dtypes: dict[str, torch.dtype] = {}
    with ask(model, guide, data, takes_weights=True, **options) as question:
        question.layout.require_latents()
        for part in question.particles(num_draws, None):
            for name in question.layout.latents:
                values = part.values(part.guide_trace.nodes[name])
                if is_discrete(part.model_trace.nodes[name]["fn"]) or not values.is_floating_point():
                    raise ValueError(f"latent site {name!r} is discrete, so that there is nothing between two values")
                total, dtypes[name] = values.double().sum(0).cpu(), values.dtype
                found = sums.setdefault(name, [])
                if part.start:
                    found[-1] += total
                else:
                    found.append(total)
        whole = question.data.batch(slice(0, len(question.data)))
        covariates = covariates_of(question, question.pair.given(whole))
        spaces = _spaces(question, whole) if with_spaces else {}
    codes = {name: (torch.cat(found) / num_draws).to(dtypes[name]) for name, found in sums.items()}
    return codes, covariates, spaces


def covariates_of(question: Question, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the tensors of a batch that the model does not observe."""
    sources = {site.reading.source for site in question.layout.observed if site.reading is not None}
    return tuple(t.cpu() for k, t in enumerate(batch) if k not in sources)


def _spaces(question: Question, batch: tuple[Tensor, ...]) -> dict[str, OwnSpace]:
    """Return the space in which each latent's prior starts, given the covariates of a batch."""
    trace = question.pair.traces(batch)[0]
    return {name: own_space(name, trace.nodes[name]["fn"]) for name in question.layout.latents}


def _between(one: Tensor, other: Tensor, t: Tensor, path: str, space: OwnSpace | None) -> Tensor:
    """Return ``[num, M, ...]`` on the way from one to the other."""
    t = t.reshape(-1, *[1] * one.dim()).to(one)
    if path == "spherical":
        return _on_circle(one, other, t)
    if space is None:
        return torch.lerp(one, other, t)
    with torch.no_grad():
        return space.back(torch.lerp(space.into(one), space.into(other), t))


def _on_circle(one: Tensor, other: Tensor, t: Tensor) -> Tensor:
    lengths = [v.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(-1, *[1] * (v.dim() - 1)) for v in (one, other)]
    units = [v / length for v, length in zip((one, other), lengths, strict=True)]
    cosine = (units[0] * units[1]).flatten(1).sum(1).clamp(-1, 1).reshape(lengths[0].shape)
    angle = cosine.acos()
    sine = angle.sin()
    flat = sine.abs() < 1e-6  # along one line
    safe = torch.where(flat, 1.0, sine)
    weights = (((1 - t) * angle).sin() / safe, (t * angle).sin() / safe)
    direction = torch.where(flat, torch.lerp(units[0], units[1], t), weights[0] * units[0] + weights[1] * units[1])
    return direction * torch.lerp(lengths[0], lengths[1], t)


def _chosen(latent: Any, codes: Mapping[str, Tensor]) -> tuple[str, int]:
    """Return the site and the number of a latent.

    Raises:
        ValueError: for a latent that there is not.
    """
    sizes = {name: code[0].numel() for name, code in codes.items()}
    known = ", ".join(f"{name!r} of {size}" for name, size in sizes.items())
    if isinstance(latent, str):
        site, number = latent, 0
        if sizes.get(site, 1) > 1:
            raise ValueError(f"say which latent of the site: ({latent!r}, 0), of {known}")
    elif isinstance(latent, tuple | list) and len(latent) == 2:
        site, number = latent
    else:
        site, number = next(iter(sizes)), latent
        if len(sizes) > 1:
            raise ValueError(f"the pair has several latent sites, {known}: give a pair of a site and a number")
    if site not in sizes or isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < sizes[site]:
        raise ValueError(f"latent must be a number, or a pair of a site and a number, of {known}, got {latent!r}")
    return site, number


def _decoded(model: Program, way: Mapping[str, Tensor], covariates: tuple[Tensor, ...], options: Options) -> Values:
    """Decode latents, and return them beside what they decode to."""
    means = decode(model, way, *covariates, **without(options, "batch_size"))
    return Values({**means, **way}, means.encoding, None, means.observed)
