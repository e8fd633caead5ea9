"""What a model makes: data from nothing, data from given latents, and the data again from their codes."""

from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from pyrovae.arviz.labels import refuse_beyond
from pyrovae.common.checks import at_least, flag
from pyrovae.diagnostics.predictive.draws import draw
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.importance.question import Question, ask
from pyrovae.programs.isolation import same_streams
from pyrovae.programs.sites import GIVEN, sample_sites, site_rows
from pyrovae.programs.types import Program, Site, Trace
from pyrovae.uses.programs import alone, as_covariates, released_run
from pyrovae.uses.values import Values, averaged, expected, values_of

ROWS = 4096  # of a run


@shared_keywords()
def sample(
    model: Program,
    num: int,
    *covariates: Any,
    latents: Mapping[str, Any] | None = None,
    **options: Unpack[Options],
) -> Values:
    """Draw latents and data from the generative program: z ~ p(z), x ~ p(x | z).

    To draw what is missing given a part of x: :func:`pyrovae.impute`.

    Args:
        model: generative program ``model(*batch)``, whose first arguments are the data.
        num: number of draws.
        *covariates: the further arguments of the model, ``[num, ...]``, or ``[1, ...]`` for all draws alike.
        latents: values of some latents by site, ``[num, ...]``, or ``[1, ...]`` for all draws alike; the others are
            drawn from p(z | those given above them).
        **options: seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        Values by site, latents and observed sites, ``[num, ...]``; ``.to_frame()`` is a table, where the model was
        fitted to one.

    Raises:
        ValueError: for covariates or latents of another number of rows, a site that is no latent of the model, and for
            a model that computes with its data (:func:`pyrovae.simulate` takes them as a template).

    Example:
        >>> from pyrovae import models
        >>> drawn = sample(models.LinearGaussian(2, 5), 7, progress=False)
        >>> drawn["z"].shape, drawn["x"].shape
        (torch.Size([7, 2]), torch.Size([7, 5]))
    """
    num = at_least("num", num, 1)
    parts: list[dict[str, Tensor]] = []
    with alone(model, options) as device:
        given = as_covariates(model, num, covariates, device)
        rows, plates = _given_latents(model, num, latents, covariates, device)
        for start in range(0, num, ROWS):
            stop = min(start + ROWS, num)
            values = {name: v[start:stop].movedim(0, plates[name]) for name, v in rows.items()} or None
            trace = released_run(model, stop - start, tuple(c[start:stop] for c in given), device, values)
            parts.append({name: site_rows(site).cpu() for name, site in _local(trace)})
            observed = _observed(trace)
    return values_of(model, {name: torch.cat([p[name] for p in parts]) for name in parts[0]}, observed)


def _given_latents(
    model: Program, num: int, latents: Mapping[str, Any] | None, covariates: tuple[Any, ...], device: torch.device
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the latents that are given, ``[num, ...]``, and the number of dimensions left of the data plate's.

    Raises:
        ValueError: for a site that is no latent, and for values of another shape.
    """
    if latents is None:
        return {}, {}
    if not isinstance(latents, Mapping):
        raise ValueError(f"latents must be values by site, such as {{'z': z}}, got {type(latents).__name__}")
    probe, rows = _probe(model, covariates, device), {}
    for name, given in latents.items():
        value, lead = _flat(name, _tensor(name, given, device), probe)
        if len(lead) != 1 or lead[0] not in (1, num):
            raise ValueError(f"latent {name!r} must have {num} rows, or one for all draws, got {list(lead)}")
        rows[name] = value.expand(num, *value.shape[1:])
    return rows, {name: len(probe.nodes[name]["fn"].batch_shape) - 1 for name in rows}


@shared_keywords()
def decode(
    model: Program,
    latents: Mapping[str, Tensor],
    *covariates: Any,
    num_draws: int = 100,
    **options: Unpack[Options],
) -> Values:
    """Return the mean of what the model observes, given latents: E[x | z].

    Latents that are not given are drawn from p(z | those given above them), and averaged over. A column of categories
    without an order has no mean: its most probable category is returned. A site whose distribution has no mean is left
    out.

    Args:
        model: generative program ``model(*batch)``, whose first arguments are the data.
        latents: values by site, ``[N, ...]``, or draws of them, ``[S, N, ...]``, as :func:`pyrovae.posterior` returns.
        *covariates: the further arguments of the model, ``[N, ...]``, or ``[1, ...]`` for all alike; a whole batch,
            data included, is taken too.
        num_draws: number of draws of latents that are not given.
        **options: seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        Means by observed site, ``[N, ...]`` or ``[S, N, ...]``.

    Raises:
        ValueError: for a site that is no latent of the model, and for latents of another shape than the site's.

    Example:
        >>> from pyrovae import models
        >>> decode(models.LinearGaussian(2, 5), {"z": torch.zeros(7, 2)}, progress=False)["x"].shape
        torch.Size([7, 5])
    """
    num_draws = at_least("num_draws", num_draws, 1)
    if not isinstance(latents, Mapping) or not latents:
        raise ValueError(f"latents must be values by site, such as {{'z': z}}, got {type(latents).__name__}")
    with alone(model, options) as device:
        probe = _probe(model, covariates, device)
        flat = {name: _flat(name, _tensor(name, value, device), probe) for name, value in latents.items()}
        rows, sizes = {name: value for name, (value, _) in flat.items()}, [lead for _, lead in flat.values()]
        if len(set(sizes)) > 1:
            raise ValueError(f"all latents must have the same numbers of draws and rows, got {sizes}")
        lead = sizes[0]
        given = as_covariates(model, lead[-1], covariates, device)
        given = tuple(c.repeat(lead[0], *[1] * (c.dim() - 1)) if len(lead) > 1 else c for c in given)
        free = [name for name, site in _local(probe) if GIVEN not in site["infer"] and name not in rows]
        plates = {name: len(probe.nodes[name]["fn"].batch_shape) - 1 for name in rows}
        parts = list(_means(model, rows, plates, given, num_draws if free else 1, device))
    means = {name: torch.cat([p[name] for p in parts]).unflatten(0, lead) for name in parts[0]}
    return values_of(model, means, tuple(means))


def _means(
    model: Program, rows: Mapping[str, Tensor], plates: Mapping[str, int], given: tuple[Tensor, ...], repeats: int,
    device: torch.device,
) -> Iterator[dict[str, Tensor]]:  # fmt: skip
    """Iterate over means of parts of the rows, each row run ``repeats`` times."""
    total, size = len(next(iter(rows.values()))), max(1, ROWS // repeats)
    for start in range(0, total, size):
        stop = min(start + size, total)
        values = {n: v[start:stop].repeat_interleave(repeats, 0).movedim(0, plates[n]) for n, v in rows.items()}
        covariates = tuple(c[start:stop].repeat_interleave(repeats, 0) for c in given)
        trace = released_run(model, (stop - start) * repeats, covariates, device, values)
        found = {name: _by_draw(trace.nodes[name], stop - start) for name in _observed(trace)}
        yield {name: averaged(v, trace.nodes[name]["fn"]) for name, v in found.items() if v is not None}


def _by_draw(site: Site, count: int) -> Tensor | None:
    """Return a site's expected values as ``[draws, count, ...]`` on the CPU; None for a distribution without a mean."""
    try:
        values = site_rows({**site, "value": expected(site["fn"])})
    except NotImplementedError:
        return None
    return values.unflatten(0, (count, -1)).transpose(0, 1).cpu()


@shared_keywords(batch_size=BATCH_SIZE)
def reconstruct(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_draws: int = 100,
    draws: bool = False,
    max_bytes: int = 4 * 2**30,
    **options: Unpack[Options],
) -> Values:
    """Return the posterior predictive of the data, z ~ q(z | x), x' ~ p(x' | z): means, or draws.

    Missing cells are filled in: see :func:`pyrovae.impute` for imputations that can be trusted.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, a table, or a data set.
        num_draws: number of draws of the latents per observation.
        draws: whether to return draws ``[S, N, ...]``; False returns means over them, ``[N, ...]``, and of categories
            without an order the most frequent one.
        max_bytes: refuse draws that take more memory than this.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, or draws beyond ``max_bytes``.

    Example:
        >>> from pyrovae import guides, models
        >>> model = models.LinearGaussian(2, 5)
        >>> reconstruct(model, guides.Exact(model), torch.zeros(7, 5), progress=False)["x"].shape
        torch.Size([7, 5])
    """
    num_draws = at_least("num_draws", num_draws, 1)
    with ask(model, guide, data, takes_weights=True, **options) as question:
        if flag("draws", draws):
            parts = _drawn(question, num_draws, max_bytes)
        elif question.layout.summed:  # what is observed depends on draws of these, too
            several = _drawn(question, num_draws, max_bytes)
            parts = [{name: v.double().mean(0).to(v.dtype) for name, v in part.items()} for part in several]
        else:
            parts = _averages(question, num_draws)
        index = question.data.index
    whole = {name: torch.cat([p[name] for p in parts], 1 if draws else 0) for name in parts[0]}
    return values_of(model, whole, tuple(whole), index)


def _averages(question: Question, num_draws: int) -> list[dict[str, Tensor]]:
    """Return means of every batch of data."""
    names = [site.name for site in question.layout.observed]
    found: dict[int, dict[str, list[Tensor]]] = {}
    sites: dict[str, Any] = {}
    for part in question.particles(num_draws, "reconstruct"):
        for name in names:
            sites[name] = part.model_trace.nodes[name]
            values = _by_draw(sites[name], len(part.indices))
            if values is not None:
                found.setdefault(part.indices.start, {}).setdefault(name, []).append(values)
    return [
        {name: averaged(torch.cat(values), sites[name]["fn"]) for name, values in by_site.items()}
        for by_site in found.values()
    ]


def _drawn(question: Question, num_draws: int, max_bytes: int) -> list[dict[str, Tensor]]:
    """Return draws of every batch of data."""
    found: dict[int, dict[str, list[Tensor]]] = {}
    for number, part in enumerate(draw(question, num_draws, ("posterior_predictive",), "reconstruct")):
        values = part.groups["posterior_predictive"]
        if not number:
            one = sum(v[0, 0].numel() * v.element_size() for v in values.values())
            refuse_beyond(max_bytes, one * num_draws * len(question.data))
        for name, value in values.items():
            found.setdefault(part.indices.start, {}).setdefault(name, []).append(value)
    return [{name: torch.cat(values) for name, values in by_site.items()} for by_site in found.values()]


def _probe(model: Program, covariates: tuple[Any, ...], device: torch.device) -> Trace:
    """Run the model for one observation, to learn its sites."""
    with same_streams(device):
        first = tuple(c[:1] if isinstance(c, Tensor | np.ndarray) and c.ndim else c for c in covariates)
        return released_run(model, 1, as_covariates(model, 1, first, device), device)


def _tensor(name: str, value: Any, device: torch.device) -> Tensor:
    try:
        return torch.as_tensor(value).to(device)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"latent {name!r} must be a tensor or an array, got {type(value).__name__}") from None


def _flat(name: str, value: Tensor, probe: Trace) -> tuple[Tensor, tuple[int, ...]]:
    """Return a latent's values with one row per run of the model, and the sizes of its leading dimensions.

    Raises:
        ValueError: for a site that is no latent of the model, or values of another shape.
    """
    latents = {site: node for site, node in _local(probe) if GIVEN not in node["infer"]}
    if not value.numel():
        raise ValueError(f"latent {name!r} is empty: give at least one row")
    if name not in latents:
        raise ValueError(f"site {name!r} is no latent of the model: it has {', '.join(latents)}")
    own = tuple(site_rows(latents[name]).shape[1:])
    lead = value.dim() - len(own)
    if lead not in (1, 2) or tuple(value.shape[lead:]) != own:
        shape = ", ".join(["N", *map(str, own)])
        raise ValueError(f"latent {name!r} must be [{shape}] or [S, {shape}], got {list(value.shape)}")
    dtype = latents[name]["value"].dtype
    return value.reshape(-1, *own).to(dtype), tuple(value.shape[:lead])


def _local(trace: Trace) -> list[tuple[str, Site]]:
    """Return the sites of a run with a row per observation; global latents have none."""
    return [
        (name, site)
        for name, site in sample_sites(trace)
        if any(frame.vectorized and frame.dim == -1 for frame in site["cond_indep_stack"])
    ]


def _observed(trace: Trace) -> tuple[str, ...]:
    return tuple(name for name, site in _local(trace) if GIVEN in site["infer"])
