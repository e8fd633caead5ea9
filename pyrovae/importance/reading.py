"""A pair read together with data: one sentence says what breaks the contract, before any work."""

import math
from dataclasses import replace
from typing import Any

import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.distributions import Delta
from pyro.util import check_site_shape
from torch import Tensor
from torch.distributions import constraints

from pyrovae.common.checks import brief
from pyrovae.data import Data
from pyrovae.distributions.supports import before_affine
from pyrovae.importance.options import BATCH_SIZE
from pyrovae.programs.densities import log_density
from pyrovae.programs.handlers import Repeated, WithinBounds
from pyrovae.programs.isolation import same_streams
from pyrovae.programs.layout import Layout, Observed
from pyrovae.programs.pair import Pair
from pyrovae.programs.sites import beside_densities, counted, sample_sites, support_of
from pyrovae.programs.types import Batch


def read(pair: Pair, data: Data, batch_size: int = BATCH_SIZE) -> Layout:
    """Run the pair once, validated, on the first batch; check that all data lie in the likelihood's support.

    Raises:
        ValueError: one sentence that names what is wrong, and where.
    """
    data = data.numbered(assumed=True)
    batch = data.batch(slice(0, batch_size))
    with Repeated():  # a subsampled plate may be read with more data than its full size
        layout, model_trace, guide_trace = pair.numbered().read(batch)
    plates = {
        role: trace.nodes[layout.plate]["fn"]
        for role, trace in (("guide", guide_trace), ("model", model_trace))
        if layout.plate in trace.nodes
    }
    layout = replace(layout, num_all=len(data))
    _see_that_numbers_are_known(pair, data, layout, plates, batch)
    layout = replace(layout, positions=_asking_for_positions(pair, data, layout, plates, batch_size))
    _check_roles(layout, data)
    _check_support(pair, layout, data)
    for name in layout.latents:
        _check_latent(name, model_trace.nodes[name], guide_trace.nodes[name])
    for role, trace in (("guide", guide_trace), ("model", model_trace)):
        for name, site in sample_sites(trace):
            if beside_densities(site, role):
                continue
            try:
                trace.compute_log_prob(lambda candidate, _, name=name: candidate == name)
                check_site_shape(site, max_plate_nesting=math.inf)
            except ValueError as error:
                raise ValueError(f"site {name!r} of the {role} cannot be scored: {brief(error)}") from error
    return layout


def _see_that_numbers_are_known(
    pair: Pair, data: Data, layout: Layout, plates: dict[str, Any], batch: tuple[Tensor, ...]
) -> None:
    """Refuse data whose numbers are not known where the plate numbers other data: subsets, splits, new data.

    Raises:
        ValueError: when a program uses the numbers, so that its densities depend on them.
    """
    sizes = {plate.size for plate in plates.values() if plate.subsample_size is not None} - {len(batch[0])}
    if data.assumed is None or not sizes or sizes == {data.assumed}:
        return
    whole = max(sizes)

    def densities(numbers: Tensor) -> list[Tensor]:
        with same_streams(data.device), Repeated():
            traces = pair.numbered(replace(layout, summed=())).traces((*batch[:-1], numbers % whole))
        return [log_density(trace, len(numbers)).detach() for trace in traces]

    try:
        used = not all(map(torch.equal, densities(batch[-1]), densities(batch[-1] + 1)))
    except Exception:  # of any kind: it comes again later, where it is explained
        return
    if used:
        raise ValueError(
            f"the indices of the plate {layout.plate!r} number {whole} data, and a program uses them, but "
            f"{data.assumed} data were given, and it is not known which of them these are: take a part of the "
            f"{whole} data by data.Data(x).numbered().subset(...); such a program has no values for other data"
        )


def _asking_for_positions(
    pair: Pair, data: Data, layout: Layout, plates: dict[str, Any], batch_size: int
) -> tuple[str, ...]:
    """Return which programs take rows of their batch, not of the whole set, by the plate's indices (``x[i]``).

    On a batch of the last data, whose numbers are beyond the batch's length, such a program fails with numbers and not
    with positions.

    Raises:
        ValueError: when the program's plate has a size of its own, so that the batch holds the plate's rows already.
    """
    size = min(batch_size, len(data) - 1)
    if not plates or size < 1:
        return ()
    batch = data.batch(slice(len(data) - size, len(data)))

    def fails(positions: tuple[str, ...]) -> bool:
        try:
            with same_streams(data.device), Repeated(), WithinBounds():
                pair.numbered(replace(layout, positions=positions)).traces(batch)
        except IndexError:
            return True
        except Exception:  # of any kind: it comes again later, where it is explained
            return False
        finally:
            for guide in pair.all_modules:
                if isinstance(guide, EasyGuide):  # keeps its plates when it fails
                    guide.plates.clear()
        return False

    if not fails(()):
        return ()
    roles = tuple(plates)
    positions = next((one for one in (*((role,) for role in roles), roles) if not fails(one)), ())
    with same_streams(data.device), Repeated():
        traces = dict(
            zip(
                ("model", "guide"),
                pair.numbered().traces((*batch[:-1], torch.arange(size, device=data.device))),
                strict=True,
            )
        )
    for role in positions:
        if traces[role].nodes[layout.plate]["fn"].size != size:  # the program knows how many data there are
            raise ValueError(
                f"the {role} takes rows of its batch by the indices of the plate {layout.plate!r}, which number the "
                "data within the whole set; the batch holds the plate's rows already: write x instead of x[i]"
            )
    return positions


def _check_latent(name: str, model_site: dict[str, Any], guide_site: dict[str, Any]) -> None:
    event_shape, shape = tuple(model_site["fn"].event_shape), guide_site["value"].shape
    if event_shape and tuple(shape[len(shape) - len(event_shape) :]) != event_shape:
        columns = " by ".join(map(str, shape[len(shape) - len(event_shape) :]))
        raise ValueError(
            f"latent site {name!r} has {' by '.join(map(str, event_shape))} columns in the model but {columns} in the "
            "guide: give both the same number of latents"
        )
    supports = [support_of(site["fn"]) for site in (model_site, guide_site)]
    if supports[0] is None or supports[1] is None:  # a support that is not declared is not checked
        return
    prior, posterior = map(_innermost, supports)
    if prior.is_discrete != posterior.is_discrete and not isinstance(guide_site["fn"], Delta):
        kinds = ["discrete" if support.is_discrete else "continuous" for support in (prior, posterior)]
        raise ValueError(
            f"latent site {name!r} is {kinds[0]} in the model and {kinds[1]} in the guide, whose mass and density "
            "cannot be compared: sample it from the same kind of distribution in both"
        )
    try:
        inside = bool(supports[0].check(guide_site["value"]).all())
    except (RuntimeError, NotImplementedError):
        inside = True
    whole = prior is constraints.real and _innermost(before_affine(model_site["fn"])) is constraints.real
    narrower = whole and posterior is not constraints.real and not posterior.is_discrete
    if not inside or (narrower and not isinstance(guide_site["fn"], Delta)):
        raise ValueError(
            f"latent site {name!r} has support {prior} in the model but {posterior} in the guide: sample it on the "
            "model's support (guides of pyrovae take support=)"
        )


def _varies(support: Any) -> bool:
    """Whether a support differs between data, so that only the density itself can check it."""
    return any(isinstance(bound, Tensor) and bound.numel() > 1 for bound in vars(_innermost(support)).values())


def _innermost(support: Any) -> Any:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _check_roles(layout: Layout, data: Data) -> None:
    """Refuse a pair that observes a covariate, or that does not observe what has the role "observed" in the data.

    Raises:
        ValueError: naming the tensor.
    """
    sources = {site.source for site in layout.observed}
    readable = all(site.reading is not None for site in layout.observed)
    for position, field in enumerate(data.fields):
        if field.role == "covariate" and position in sources:
            raise ValueError(
                f"{data.name_of(position)} of the data is a covariate by its role, but the model observes it: give it "
                'role="observed", or leave it out of obs='
            )
        if field.role == "observed" and position not in sources and readable:
            raise ValueError(
                f"{data.name_of(position)} of the data is observed by its role, but no site of the model observes it: "
                'give it role="covariate", or observe it'
            )


def _check_support(pair: Pair, layout: Layout, data: Data) -> None:
    sites = [s for s in layout.observed if s.support is not None and s.reading is not None and not _varies(s.support)]
    for indices, batch in data.batches(max(layout.num_data, 1)) if sites else ():
        for site in sites:
            value = site.required_reading().of(batch)
            if bool(site.support.check(value).all()):  # type: ignore[union-attr]
                continue
            inside = _inside_its_own(pair, site, batch)
            if not bool(inside.all()):
                row = int((~inside).nonzero()[0])
                bad = value.movedim(value.dim() + site.required_reading().data_dim, 0)[row]
                low, high = float(bad.min()), float(bad.max())
                raise ValueError(
                    f"observed site {site.name!r}: observation {indices[row]} has values from {low:g} to {high:g}, "
                    "outside "
                    f"the likelihood's support {site.support}: {_advice(site.support, bad)}"
                )


def _inside_its_own(pair: Pair, site: Observed, batch: Batch) -> Tensor:
    """Return which data of a batch are inside the support that the model gives to that batch, ``[N]``.

    The bounds may depend on the batch, and what a mask leaves out may have any value.
    """
    with Repeated():
        node = pair.numbered().traces(batch)[0].nodes[site.name]
    value, support = node["value"], node["fn"].support
    inside: Tensor = support.check(value)
    cells = counted(node)
    if cells is not None:
        inside = inside | ~(cells.flatten(-support.event_dim).all(-1) if support.event_dim else cells)
    return inside.movedim(support.event_dim - 1 - node["fn"].event_dim, 0).reshape(len(batch[0]), -1).all(1)


def _advice(support: Any, values: Tensor) -> str:
    if bool(values.isnan().any()):
        return "where values are missing, wrap the likelihood in likelihoods.Missing and the encoder in nn.Observed"
    if _innermost(support) is constraints.boolean and bool(((values >= 0) & (values <= 1)).all()):
        return (
            "binarise them (binarise=data.Static()), or take a likelihood of numbers between 0 and 1, such as "
            "ContinuousBernoulli or DiscretisedLogistic"
        )
    if isinstance(_innermost(support), constraints.integer_interval):
        return "code categories and labels within these bounds, both included, or choose another likelihood"
    if support.is_discrete and _innermost(support) is not constraints.boolean:
        return "give whole numbers from there on, or choose another likelihood"
    return "rescale or binarise the data, or choose another likelihood"
