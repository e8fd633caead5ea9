"""Particles z ~ q(z | x) and their log weights log p(x, z) - log q(z | x), streamed over data and particles.

Each datum stands in its batch once a particle, so that any pair that keeps the contract runs as it was written, and
each has its own random stream, so that its numbers do not depend on its batch.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.util import check_site_shape
from torch import Tensor
from torch.distributions import constraints

from pyrovae.checks import brief
from pyrovae.data import Data, as_data
from pyrovae.enumeration import SUMMED
from pyrovae.noise import DatumNoise
from pyrovae.pair import Layout, Observed, Pair, Program, Repeated, WithinBounds, log_density, sample_sites
from pyrovae.progress import progress_bar
from pyrovae.sites import as_observed, beside_densities, released, support_of
from pyrovae.state import bare_params, default_device, isolated, placed, same_streams
from pyrovae.supports import before_affine

BATCH_SIZE = 32
PARTICLES_PER_CALL = 256  # fixed, so that a datum's particles do not depend on the batch size


@dataclass(frozen=True)
class Particles:
    """Some particles of some data.

    Attributes:
        indices: of the data, within the set.
        start: number of the first of these particles among all of a datum's.
        rows: the batch, every datum K times in a row.
        model_trace: of the model, its data plate ``len(indices) * K`` long: K particles of the first datum, and so on.
        guide_trace: of the guide, likewise.
        log_weight: ``[K, len(indices)]``, nats.
    """

    indices: range
    start: int
    rows: tuple[Tensor, ...]
    model_trace: Any
    guide_trace: Any
    log_weight: Tensor

    def values(self, site: dict[str, Any]) -> Tensor:
        """Return a local site's values as ``[K, len(indices), ...]``; plates left of the data plate come next."""
        return site_rows(site).unflatten(0, (len(self.indices), -1)).transpose(0, 1)


def site_rows(site: dict[str, Any]) -> Tensor:
    """Return a local site's values as ``[rows, ...]``; plates left of the data plate come next."""
    value: Tensor = site["value"]
    if not site["infer"].get(SUMMED):  # whose distribution has dimensions of its own for what is summed out
        value = value.expand(site["fn"].batch_shape + site["fn"].event_shape)
    return value.movedim(value.dim() - 1 - site["fn"].event_dim, 0)


@dataclass(frozen=True)
class Question:
    """A pair and the data that it is asked about, read and checked, on the device."""

    pair: Pair
    data: Data
    layout: Layout
    seed: int

    def particles(
        self, num_particles: int, batch_size: int = BATCH_SIZE, progress: str | None = None
    ) -> Iterator[Particles]:
        """Draw particles for every datum, batch by batch, at most ``PARTICLES_PER_CALL`` a datum at once.

        Raises:
            ValueError: when a log weight is not a number, naming the site and the datum.
        """
        bar = progress_bar(total=len(self.data), label=progress, unit="data")
        with bar, pyro.validation_enabled(False):
            for indices, batch in self.data.batches(batch_size):
                noise = DatumNoise("particles", self.seed, indices, self.data.device)
                for start, repeats in chunks(num_particles):
                    yield self._draw(indices, batch, noise, start, repeats)
                bar.update(len(indices))

    def name_what_is_not_finite(self, indices: range, batch: tuple[Tensor, ...], num_particles: int) -> None:
        """Draw a batch's particles again, and raise with the datum and the site."""
        noise = DatumNoise("particles", self.seed, indices, self.data.device)
        for start, repeats in chunks(num_particles):
            self._draw(indices, batch, noise, start, repeats)
        raise ValueError(f"a log weight of data {indices[0]} to {indices[-1]} is not a finite number")

    def _draw(
        self, indices: range, batch: tuple[Tensor, ...], noise: DatumNoise, start: int, repeats: int
    ) -> Particles:
        rows = tuple(t.repeat_interleave(repeats, dim=0) for t in batch)
        noise.repeats = repeats
        with other_lengths_explained(self.layout, len(rows[0])), noise, Repeated():
            model_trace, guide_trace = self.pair.traces(rows)
        size = len(indices) * repeats
        weight = log_density(model_trace, size) - log_density(guide_trace, size)
        weight = weight.unflatten(0, (len(indices), repeats)).T
        bad = (weight.isnan() | (weight == math.inf)).any(0)
        if bool(bad.any()):
            datum = indices[int(bad.nonzero()[0])]
            site = non_finite_site(model_trace, guide_trace)
            raise ValueError(
                f"the log weight of datum {datum} is not a finite number, first at site {site!r}: the "
                "program returns NaN or infinity there"
            )
        return Particles(indices, start, rows, model_trace, guide_trace, weight)


@contextmanager
def other_lengths_explained(layout: Layout, length: int) -> Iterator[None]:
    """Say of programs that fail inside the block that they ran on a batch of another length."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the pair ran on a batch of {layout.num_data} data but fails on one of {length}; "
            f"programs must read the number of data from their batch: {type(error).__name__}: {brief(error)}"
        ) from error


def chunks(num_particles: int) -> list[tuple[int, int]]:
    """Split particles into calls as equal as can be: the first particle and the number of them."""
    size = -(-num_particles // -(-num_particles // PARTICLES_PER_CALL))
    return [(start, min(size, num_particles - start)) for start in range(0, num_particles, size)]


def simulated(asked: Question, batch: tuple[Tensor, ...], noise: DatumNoise) -> tuple[tuple[Tensor, ...], Any]:
    """Draw latents and data from the model; return the batch with these data, and the trace.

    What is missing of the batch is missing of the data that take its place: NaN, masked cells, labels of -1.

    Raises:
        ValueError: for an observation that is not a tensor of the batch.
    """
    with noise, Repeated():
        trace = poutine.trace(released(asked.pair.model)).get_trace(*batch)
    made = list(batch)
    for site in asked.layout.observed:
        if site.source is None:
            raise ValueError(f"observed site {site.name!r} is not a tensor of the batch, so no data can take its place")
        known, node = batch[site.source], trace.nodes[site.name]
        made[site.source] = as_observed(node, node["value"].to(known.dtype), known)
    return tuple(made), trace


@contextmanager
def question(model: Program, guide: Program, data: Any, *, seed: int, device: Any) -> Iterator[Question]:
    """Read a pair and data for a per-datum question: in eval mode, without gradients, all global state put back.

    Data with a random protocol (dynamic binarisation) are drawn once, the same for every pair and seed. Bare
    parameters of plain functions are read from the caller's param store.

    Raises:
        ValueError: for a pair that breaks the contract, or data that the pair cannot take.
    """
    pair = Pair(model, guide)
    device = default_device(device)
    data = placed_data(pair, data, device).fixed().numbered(assumed=True)
    modules = list(pair.modules.values())
    with ExitStack() as stack:
        stack.enter_context(placed(pair.all_modules, device))
        stack.enter_context(
            isolated(
                purpose="question",
                seed=seed,
                device=device,
                modules=pair.all_modules,
                training=False,
                params=bare_params(device, modules),
            )
        )
        stack.enter_context(torch.no_grad())
        layout = read(pair, data)
        layout.require_per_datum()
        _name_what_is_left_out(layout)
        yield Question(pair.numbered(layout), data, layout, seed)


def _name_what_is_left_out(layout: Layout) -> None:
    if layout.factors:
        warnings.warn(
            f"pyro.factor {', '.join(map(repr, layout.factors))} counts in training, and is left out of what is "
            "computed per datum: it is no density of data",
            stacklevel=4,
        )


def placed_data(pair: Pair, data: Any, device: torch.device) -> Data:
    """Return the data as a set on ``device``, floating tensors in the dtype of the pair's parameters.

    Raises:
        ValueError: for data that :func:`as_data` refuses, none, and those whose spread that dtype loses.
    """
    parameters = [p for module in pair.modules.values() for p in module.parameters() if p.is_floating_point()]
    dtype = parameters[0].dtype if parameters else None
    placed = as_data(data).to(device, dtype)
    if not len(placed):
        raise ValueError("the data set is empty, as a part of splits is whose share is less than one datum: give more")
    if dtype is not None:
        placed.see_that_rounding_is_harmless()
    return placed


def read(pair: Pair, data: Data, batch_size: int = BATCH_SIZE) -> Layout:
    """Run the pair once, validated, on the first batch; see that all data lie in the likelihood's support.

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
    """Refuse data of unknown numbers where the plate numbers others: subsets, splits, new data.

    Raises:
        ValueError: when a program makes use of the numbers, by which its densities then differ.
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
    except Exception:  # in whatever way; it is met again where it is explained
        return
    if used:
        raise ValueError(
            f"the indices of the plate {layout.plate!r} number {whole} data, and a program uses them, but "
            f"{data.assumed} data were given: it is not known which of them these are. Take some of them by "
            "data.Data(x).numbered().subset(...); of other data such a program has nothing"
        )


def _asking_for_positions(
    pair: Pair, data: Data, layout: Layout, plates: dict[str, Any], batch_size: int
) -> tuple[str, ...]:
    """Return which programs take rows of their batch by the plate's indices (``x[i]``), not what belongs to a datum.

    On a batch of the last data, whose numbers are beyond the batch's length, it fails with these, not with positions.

    Raises:
        ValueError: when its plate has a size of its own, so that the batch holds the plate's rows already.
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
        except Exception:  # in whatever way; it is met again where it is explained
            return False
        finally:
            for guide in pair.all_modules:
                if isinstance(guide, EasyGuide):  # which keeps its plates where it fails
                    guide.plates.clear()
        return False

    if not fails(()):
        return ()
    roles = tuple(plates)
    found = next((one for one in (*((role,) for role in roles), roles) if not fails(one)), ())
    with same_streams(data.device), Repeated():
        traces = dict(
            zip(
                ("model", "guide"),
                pair.numbered().traces((*batch[:-1], torch.arange(size, device=data.device))),
                strict=True,
            )
        )
    for role in found:
        if traces[role].nodes[layout.plate]["fn"].size != size:  # it knows how many data there are
            raise ValueError(
                f"the {role} takes rows of its batch by the indices of the plate {layout.plate!r}, which number the "
                "data within the whole set; the batch holds the plate's rows already: write x instead of x[i]"
            )
    return found


def _check_latent(name: str, model_site: dict[str, Any], guide_site: dict[str, Any]) -> None:
    wide, given = tuple(model_site["fn"].event_shape), guide_site["value"].shape
    if wide and tuple(given[len(given) - len(wide) :]) != wide:
        columns = " by ".join(map(str, given[len(given) - len(wide) :]))
        raise ValueError(
            f"latent site {name!r} has {' by '.join(map(str, wide))} columns in the model but {columns} in the guide: "
            "give both the same number of latents"
        )
    supports = [support_of(site["fn"]) for site in (model_site, guide_site)]
    if supports[0] is None or supports[1] is None:  # nothing is said, nothing is checked
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


def _check_support(pair: Pair, layout: Layout, data: Data) -> None:
    checked = [
        site
        for site in layout.observed
        if site.support is not None and site.source is not None and not _varies(site.support)
    ]
    if not checked:
        return
    for indices, batch in data.batches(max(layout.num_data, 1)):
        for site in checked:
            assert site.support is not None
            assert site.source is not None
            value = batch[site.source]
            inside = site.support.check(value)
            if not bool(inside.all()):
                inside = _inside_its_own(pair, site, batch)
            if not bool(inside.all()):
                bad = ~inside if inside.dim() == 1 else (~inside).flatten(1).any(1)
                row = int(bad.nonzero()[0])
                low, high = float(value[row].min()), float(value[row].max())
                raise ValueError(
                    f"observed site {site.name!r}: datum {indices[row]} has values from {low:g} to {high:g}, outside "
                    f"the likelihood's support {site.support}: {_advice(site.support, value[row])}"
                )


def _inside_its_own(pair: Pair, site: Observed, batch: tuple[Tensor, ...]) -> Tensor:
    """Return what of a batch is inside the support that the model gives to that batch: bounds may depend on it."""
    assert site.source is not None
    with Repeated():
        model_trace, _ = pair.numbered().traces(batch)
    found: Tensor = model_trace.nodes[site.name]["fn"].support.check(batch[site.source])
    return found


def _advice(support: Any, values: Tensor) -> str:
    if bool(values.isnan().any()):
        return "where values are missing, wrap the likelihood in likelihoods.Missing and the encoder in nn.Observed"
    if type(_innermost(support)).__name__ == "_IntegerInterval":
        return "code categories and labels within these bounds, both included, or choose another likelihood"
    if support.is_discrete and _innermost(support) is not constraints.boolean:
        return "give whole numbers from there on, or choose another likelihood"
    return "rescale or binarise the data, or choose another likelihood"


def non_finite_site(model_trace: Any, guide_trace: Any) -> str:
    """Return the first site, in the order that sites were run, with a density that is not finite for some datum."""
    for trace in (guide_trace, model_trace):
        for name, site in sample_sites(trace):
            value: Tensor = site["value"]
            finite = not value.is_floating_point() or bool(value.isfinite().all())
            log_prob = scale_and_mask(site["fn"].log_prob(value, *site["args"], **site["kwargs"]), mask=site["mask"])
            if not finite or not bool(log_prob.isfinite().all()):
                return name
    return "unknown"
