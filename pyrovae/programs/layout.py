"""What a pair samples and observes, read off its traces."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from pyrovae.internals.torch import is_validated
from pyrovae.programs.densities import plate_size
from pyrovae.programs.sites import _samples, data_frames, is_enumerated, is_factor, sample_sites, support_of
from pyrovae.programs.types import Batch, Site


@dataclass(frozen=True)
class Observed:
    """An observed site: its name, the support of its distribution, and which batch tensor it observes (if one does)."""

    name: str
    support: Constraint | None
    source: int | None


@dataclass(frozen=True)
class Layout:
    """What a pair samples and observes.

    Attributes:
        latents: local latent sites, sampled by both programs inside the data plate, in the model's order.
        auxiliary: sites of the guide alone, marked ``infer={"is_auxiliary": True}``.
        global_latents: latent sites outside the data plate.
        unguided: latent sites of the model that the guide does not sample.
        observed: observed sites.
        num_data: length of the batch that was read.
        num_all: length of the whole set; 0 where it is not known.
        plate: name of the data plate.
        nesting: depth of the plates, 1 where there is the data plate alone.
        subsampled: whether the data plate says that the batch stands for more data than it holds.
        uneven: latents that count for a different number of data in the two programs.
        summed: those of the unguided latents that are marked ``infer={"enumerate": "parallel"}``.
        factors: ``pyro.factor`` sites of both programs.
        positions: programs ("model", "guide") that take rows of their batch by the data plate's indices (``x[i]``).
    """

    latents: tuple[str, ...]
    auxiliary: tuple[str, ...]
    global_latents: tuple[str, ...]
    unguided: tuple[str, ...]
    observed: tuple[Observed, ...]
    num_data: int
    plate: str
    nesting: int
    subsampled: bool
    uneven: tuple[str, ...] = ()
    summed: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()
    positions: tuple[str, ...] = ()
    num_all: int = 0

    def require_per_datum(self) -> None:
        """Refuse a pair that has no log weight per datum.

        Raises:
            ValueError: naming the latent that is global or that the guide does not sample.
        """
        if self.global_latents:
            raise ValueError(
                f"latent site {self.global_latents[0]!r} is outside the data plate, so it is shared by all data and a "
                "per-datum answer is not defined: move it into the plate, or condition the model on a value of it"
            )
        left = [name for name in self.unguided if name not in self.summed]
        if left:
            raise ValueError(
                f"latent site {left[0]!r} of the model is not sampled by the guide, so its log weight is not "
                'defined: sample it in the guide, or mark it infer={"enumerate": "parallel"} where it is discrete'
            )

    def require_latents(self) -> None:
        """Refuse a pair that has no latents for a question that is about them.

        Raises:
            ValueError: saying so.
        """
        if not self.latents:
            raise ValueError("the pair has no latents that the guide samples, so there is nothing to ask of them")

    def require_guided(self, asked: str) -> None:
        """Refuse a pair whose model has latents that the guide leaves out, each of whose densities is not known.

        Raises:
            ValueError: naming the latent, or when there is none.
        """
        self.require_latents()
        if self.summed:
            raise ValueError(
                f"latent site {self.summed[0]!r} is summed out, so that the latents have no {asked} of their own: "
                "sample it in the guide"
            )


def _layout(model_trace: Any, guide_trace: Any, batch: Batch) -> Layout:
    num_data = batch[0].shape[0]
    model_sites = dict(sample_sites(model_trace))
    guide_sites = {name: site for name, site in sample_sites(guide_trace) if not site["is_observed"]}
    for name, site in sample_sites(guide_trace):
        if site["is_observed"] and name in model_sites and not model_sites[name]["is_observed"]:
            raise ValueError(f"site {name!r} of the guide is observed, but a latent of the model: observe it there too")
    plate = _data_plate([*model_sites.values(), *guide_sites.values()], num_data)
    everything = [site for trace in (model_trace, guide_trace) for site in _samples(trace)]
    for name, site in guide_sites.items():
        if name not in model_sites and not site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"site {name!r} of the guide is not in the model: sample it in the model too, or mark it "
                'infer={"is_auxiliary": True}'
            )
    latents: list[str] = []
    global_latents: list[str] = []
    unguided: list[str] = []
    observed: list[Observed] = []
    for name, site in model_sites.items():
        local = plate in {frame.name for frame in data_frames(site)}
        if site["is_observed"]:
            if not local:
                raise ValueError(f"observed site {name!r} is outside the data plate {plate!r}: move it inside")
            _same_events(name, site)
            observed.append(_observed(name, site, batch))
            continue
        inside = name not in guide_sites or plate in {frame.name for frame in data_frames(guide_sites[name])}
        if local != inside:
            raise ValueError(f"latent site {name!r} is inside the data plate in one program and outside in the other")
        if not local:
            global_latents.append(name)
        elif name in guide_sites:
            latents.append(name)
        if name not in guide_sites:
            unguided.append(name)
    auxiliary = [name for name in guide_sites if name not in model_sites]
    global_latents += [n for n in auxiliary if plate not in {frame.name for frame in data_frames(guide_sites[n])}]
    if not observed:
        raise ValueError(
            "the model observes nothing: give one of its sites obs= a tensor of the batch (a pyro.factor is no density "
            "of data)"
        )
    return Layout(
        latents=tuple(latents),
        auxiliary=tuple(auxiliary),
        global_latents=tuple(global_latents),
        unguided=tuple(unguided),
        observed=tuple(observed),
        num_data=num_data,
        plate=plate,
        nesting=max(-f.dim for site in everything for f in data_frames(site)),
        subsampled=plate_size(model_trace, plate) != num_data,
        uneven=tuple(n for n in latents if _differ(model_sites[n]["scale"], guide_sites[n]["scale"])),
        summed=tuple(n for n in unguided if n not in global_latents and is_enumerated(model_sites[n])),
        factors=tuple(str(site["name"]) for site in everything if is_factor(site)),
    )


def _same_events(name: str, site: Site) -> None:
    """Refuse a distribution that would be stretched over the columns of what it is to be the distribution of."""
    expected, value = tuple(site["fn"].event_shape), site["value"]
    found = tuple(value.shape[value.dim() - len(expected) :]) if expected else ()
    if found != expected:
        raise ValueError(
            f"observed site {name!r} has data of {found} columns, but the model gives it a distribution of {expected}: "
            "make the decoder as wide as the likelihood asks (likelihood.features(shape))"
        )


def _differ(one: Any, other: Any) -> bool:
    first, second = (torch.as_tensor(scale, dtype=torch.float64).cpu() for scale in (one, other))
    return not torch.isclose(first, second, rtol=1e-6, atol=0).all()


def _data_plate(sites: list[Site], num_data: int) -> str:
    ordered = sorted(sites, key=lambda site: not site["is_observed"])  # the plate around the observations, if in doubt
    frames = list(dict.fromkeys(frame for site in ordered for frame in data_frames(site)))
    named = [frame for frame in frames if frame.name == "data"]
    for frame in named:
        if frame.dim != -1 or frame.size != num_data:
            raise ValueError(
                f"the plate 'data' has length {frame.size} at dim {frame.dim}, but the batch has {num_data} data: "
                "it must be as long as the batch, at dim -1"
            )
    candidates = named or [frame for frame in frames if frame.dim == -1 and frame.size == num_data]
    if not candidates:
        first = next((str(site["name"]) for site in sites), "its sites")
        raise ValueError(
            f"the model has no data plate around site {first!r}: put its sites inside "
            f'pyro.plate("data", x.shape[0]) at dim -1, as long as the batch ({num_data} data)'
        )
    return str(candidates[0].name)


def _observed(name: str, site: Site, batch: Batch) -> Observed:
    value = site["value"]
    same = [i for i, t in enumerate(batch) if value is t] or [i for i, t in enumerate(batch) if _same_memory(value, t)]
    base = site["fn"]
    while hasattr(base, "base_dist"):
        base = base.base_dist
    checked = is_validated(base)
    return Observed(name, support_of(site["fn"]) if checked else None, same[0] if same else None)


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.data_ptr() == other.data_ptr()
