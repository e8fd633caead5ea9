"""A pair's layout, read off its traces; an error names the site that breaks the contract."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pyrovae.internals.torch import is_validated
from pyrovae.programs.densities import plate_size
from pyrovae.programs.layout import Layout, Observed
from pyrovae.programs.origins import Origins
from pyrovae.programs.sites import base, data_frames, density_sites, is_enumerated, is_factor, sample_sites, support_of
from pyrovae.programs.types import Batch, Site, Trace


@dataclass
class _Kinds:
    """Sites of the model, by kind."""

    latents: list[str] = field(default_factory=list)
    global_latents: list[str] = field(default_factory=list)
    unguided: list[str] = field(default_factory=list)
    observed: list[Observed] = field(default_factory=list)


def read_layout(model_trace: Trace, guide_trace: Trace, batch: Batch, origins: Origins) -> Layout:
    """Return what a pair samples and observes.

    Args:
        model_trace: trace of the model, run against the guide's draws.
        guide_trace: trace of the guide.
        batch: batch that both programs were run on.
        origins: mode inside which the model was run.

    Raises:
        ValueError: one sentence naming the site that breaks the contract.
    """
    num_data = batch[0].shape[0]
    model_sites = dict(sample_sites(model_trace))
    guide_sites = {name: site for name, site in sample_sites(guide_trace) if not site["is_observed"]}
    _check_guide(guide_trace, model_sites, guide_sites)
    plate = _data_plate([*model_sites.values(), *guide_sites.values()], num_data)
    kinds = _kinds(model_sites, guide_sites, plate, origins)
    everything = [site for trace in (model_trace, guide_trace) for site in density_sites(trace)]
    auxiliary = [name for name in guide_sites if name not in model_sites]
    outside = [name for name in auxiliary if not _is_inside(guide_sites[name], plate)]
    global_latents, unguided = [*kinds.global_latents, *outside], kinds.unguided
    return Layout(
        latents=tuple(kinds.latents),
        auxiliary=tuple(auxiliary),
        global_latents=tuple(global_latents),
        unguided=tuple(unguided),
        observed=tuple(kinds.observed),
        num_data=num_data,
        plate=plate,
        nesting=max(-f.dim for site in everything for f in data_frames(site)),
        subsampled=plate_size(model_trace, plate) != num_data,
        uneven=tuple(n for n in kinds.latents if _differ(model_sites[n]["scale"], guide_sites[n]["scale"])),
        summed=tuple(n for n in unguided if n not in global_latents and is_enumerated(model_sites[n])),
        factors=tuple(str(site["name"]) for site in everything if is_factor(site)),
        feeds_back=any(one.reading is not None and origins.is_used(one.reading) for one in kinds.observed),
    )


def _check_guide(guide_trace: Trace, model_sites: Mapping[str, Site], guide_sites: Mapping[str, Site]) -> None:
    for name, site in sample_sites(guide_trace):
        if site["is_observed"] and name in model_sites and not model_sites[name]["is_observed"]:
            raise ValueError(f"site {name!r} of the guide is observed, but a latent of the model: observe it in both")
    for name, site in guide_sites.items():
        if name not in model_sites and not site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"site {name!r} of the guide is not in the model: sample it in the model too, or mark it "
                'infer={"is_auxiliary": True}'
            )


def _kinds(model_sites: Mapping[str, Site], guide_sites: Mapping[str, Site], plate: str, origins: Origins) -> _Kinds:
    kinds = _Kinds()
    for name, site in model_sites.items():
        local = _is_inside(site, plate)
        if site["is_observed"]:
            if not local:
                raise ValueError(f"observed site {name!r} is outside the data plate {plate!r}: move it inside")
            _same_events(name, site)
            kinds.observed.append(_observed(name, site, origins))
            continue
        if name in guide_sites and local != _is_inside(guide_sites[name], plate):
            raise ValueError(f"latent site {name!r} is inside the data plate in one program and outside in the other")
        if not local and name not in guide_sites:
            raise ValueError(f"latent site {name!r} is inside the data plate in one program and outside in the other")
        if not local:
            kinds.global_latents.append(name)
        elif name in guide_sites:
            kinds.latents.append(name)
        if name not in guide_sites:
            kinds.unguided.append(name)
    if not kinds.observed:
        raise ValueError(
            "the model observes nothing: give one of its sites obs= a tensor of the batch (a pyro.factor is no density "
            "of data)"
        )
    return kinds


def _is_inside(site: Site, plate: str) -> bool:
    return plate in {frame.name for frame in data_frames(site)}


def _observed(name: str, site: Site, origins: Origins) -> Observed:
    support = support_of(site["fn"]) if is_validated(base(site["fn"])) else None
    reading = origins.reading(site["value"], -1 - site["fn"].event_dim)
    if isinstance(reading, str):
        return Observed(name, support, None, reading, origins.function_of(site["value"]))
    return Observed(name, support, reading)


def _same_events(name: str, site: Site) -> None:
    """Refuse a distribution whose columns are not those of its data: one would be stretched over the other."""
    expected, value = tuple(site["fn"].event_shape), site["value"]
    columns = tuple(value.shape[value.dim() - len(expected) :]) if expected else ()
    if columns != expected:
        raise ValueError(
            f"observed site {name!r} has data of {columns} columns, but the model gives it a distribution of "
            f"{expected}: make the decoder as wide as the likelihood asks (likelihood.features(shape))"
        )


def _differ(one: Any, other: Any) -> bool:
    first, second = (torch.as_tensor(scale, dtype=torch.float64).cpu() for scale in (one, other))
    return not torch.isclose(first, second, rtol=1e-6, atol=0).all()


def _data_plate(sites: list[Site], num_data: int) -> str:
    observed_first = sorted(sites, key=lambda site: not site["is_observed"])  # in doubt, take the plate around these
    frames = list(dict.fromkeys(frame for site in observed_first for frame in data_frames(site)))
    plates = [frame for frame in frames if frame.name == "data"]
    for frame in plates:
        if frame.dim != -1 or frame.size != num_data:
            raise ValueError(
                f"the plate 'data' has length {frame.size} at dim {frame.dim}, but the batch has {num_data} data: "
                "it must be as long as the batch, at dim -1"
            )
    candidates = plates or [frame for frame in frames if frame.dim == -1 and frame.size == num_data]
    if not candidates:
        first = next((str(site["name"]) for site in sites), "its sites")
        raise ValueError(
            f"the model has no data plate around site {first!r}: put its sites inside "
            f'pyro.plate("data", x.shape[0]) at dim -1, as long as the batch ({num_data} data)'
        )
    return str(candidates[0].name)
