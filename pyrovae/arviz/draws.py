"""The pair's draws and densities as an ArviZ object."""

from typing import Any

import arviz as az
import numpy as np
import torch
import xarray as xr

from pyrovae.arviz.labels import ARVIZ_1, assemble, labelled, own_dims, refuse_beyond
from pyrovae.checks import at_least
from pyrovae.data import Data
from pyrovae.evaluation import GROUPS, Draws, Evaluation, draw, evaluate
from pyrovae.pair import Program
from pyrovae.particles import BATCH_SIZE, question


def to_arviz(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_draws: int = 1000,
    num_particles: int = 1000,
    groups: tuple[str, ...] = GROUPS,
    corrected: bool = False,
    max_bytes: int = 4 * 2**30,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Any:
    """Return draws, densities and diagnostics of a pair on data as an ArviZ object.

    Variables are named by their sites; dimensions are ``chain`` (one), ``draw``, ``datum``, then the names of further
    plates, then ``<site>_dim`` (or ``<site>_dim_0``, ``<site>_dim_1``, ...).

    - ``posterior``: draws of the guide, q(z | x).
    - ``posterior_predictive``, ``prior``, ``prior_predictive``: new draws of each datum.
    - ``log_likelihood``: the MARGINAL log p(x_i), estimated by importance sampling, the same at every draw, since the
      parameters are points. Named by the observed site, or ``data`` when there are several, whose joint density it is.
    - ``observed_data``.
    - ``sample_stats``: ``log_weight`` of every posterior draw; ``khat``, ``ess``, ``elbo``, ``log_evidence`` and
      ``log_evidence_se`` of every datum. R-hat says nothing about independent draws of a guide: look at ``khat``.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set, whose feature names become coordinates.
        num_draws: draws a datum in each group.
        num_particles: importance samples a datum for ``log_likelihood`` and the diagnostics.
        groups: which of the groups of draws to make.
        corrected: whether posterior and posterior predictive draws are drawn again among themselves, by their
            Pareto-smoothed importance weights, so that they follow p(z | x) instead of q(z | x). A datum whose ``khat``
            is above 0.7 is not put right by that.
        max_bytes: refuse to build groups of draws larger than this in memory.
        batch_size: data held by a call of the programs.
        seed: of all draws.
        device: None means CUDA where there is one.
        progress: whether to show a progress bar.

    Returns:
        ``arviz.InferenceData`` with ArviZ 0.x, ``xarray.DataTree`` with 1.x.

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, or draws beyond ``max_bytes``.
    """
    at_least("num_draws", num_draws, 1)
    unknown = set(groups) - set(GROUPS)
    if unknown:
        raise ValueError(f"groups must be among {', '.join(GROUPS)}, got {', '.join(sorted(unknown))}")
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "device": device, "progress": progress}
    evaluation = evaluate(model, guide, data, num_particles=num_particles, **options)
    label = "draws" if progress else None
    with question(model, guide, data, seed=seed, device=device) as asked:
        collected = _Collected(asked.data, num_draws, max_bytes)
        for part in draw(asked, num_draws, groups, batch_size, label):
            collected.add(part)
    if corrected:
        collected.resample(seed)
    return assemble(collected.datasets(evaluation))


class _Collected:
    """Arrays that draws are written into as they come."""

    def __init__(self, data: Data, num_draws: int, max_bytes: int) -> None:
        self.data, self.num_draws, self.max_bytes = data, num_draws, max_bytes
        self.arrays: dict[str, dict[str, np.ndarray]] = {}
        self.plates: dict[str, list[str]] = {}
        self.filled = 0

    def add(self, part: Draws) -> None:
        draws = {**part.groups, "sample_stats": {"log_weight": part.log_weight}}
        if not self.arrays:
            self._allocate(draws, part)
        if self.filled >= self.num_draws:
            self.filled = 0
        count, rows = len(part.log_weight), slice(part.indices.start, part.indices.stop)
        for group, sites in draws.items():
            for name, value in sites.items():
                self.arrays[group][name][self.filled : self.filled + count, rows] = value.numpy()
        for name, value in part.observed.items():
            self.arrays["observed_data"][name][rows] = value.numpy()
        self.filled += count

    def _allocate(self, draws: dict[str, dict[str, Any]], part: Draws) -> None:
        size = len(self.data)
        shapes = {
            group: {name: ((self.num_draws, size, *v.shape[2:]), v.numpy().dtype) for name, v in sites.items()}
            for group, sites in draws.items()
        }
        needed = sum(int(np.prod(s)) * d.itemsize for sites in shapes.values() for s, d in sites.values())
        refuse_beyond(self.max_bytes, needed)
        self.arrays = {group: {name: np.empty(*s) for name, s in sites.items()} for group, sites in shapes.items()}
        self.arrays["observed_data"] = {
            name: np.empty((size, *v.shape[1:]), v.numpy().dtype) for name, v in part.observed.items()
        }
        self.plates = part.plates

    def resample(self, seed: int) -> None:
        """Draw each datum's posterior draws again, by their importance weights."""
        weights = np.exp(_smoothed(self.arrays["sample_stats"]["log_weight"]))
        chosen = _systematic(weights / weights.sum(0), np.random.default_rng(seed))
        for group in ("posterior", "posterior_predictive", "sample_stats"):
            for name, values in self.arrays.get(group, {}).items():
                index = chosen.reshape(*chosen.shape, *(1,) * (values.ndim - 2))
                self.arrays[group][name] = np.take_along_axis(values, index, axis=0)

    def datasets(self, evaluation: Evaluation) -> dict[str, xr.Dataset]:
        fields = ("khat", "ess", "elbo", "log_evidence", "log_evidence_se")
        per_datum = {name: ("datum", getattr(evaluation, name).numpy()) for name in fields}
        names = list(self.arrays["observed_data"])
        marginal = np.broadcast_to(evaluation.log_evidence.numpy(), (1, self.num_draws, len(self.data))).copy()
        groups: dict[str, dict[str, Any]] = {
            group: {name: (self._dims(name, value.ndim, group), value[None]) for name, value in sites.items()}
            for group, sites in self.arrays.items()
            if group != "observed_data"
        }
        groups["sample_stats"].update(per_datum)
        groups["log_likelihood"] = {names[0] if len(names) == 1 else "data": (("chain", "draw", "datum"), marginal)}
        groups["observed_data"] = {
            name: (self._dims(name, value.ndim + 1, "observed_data"), value)
            for name, value in self.arrays["observed_data"].items()
        }
        return {name: self._dataset(variables) for name, variables in groups.items()}

    def _dims(self, name: str, ndim: int, group: str) -> tuple[str, ...]:
        own = own_dims(name, ndim - 2, self.plates.get(name, []))
        return own if group == "observed_data" else ("chain", "draw", *own)

    def _dataset(self, variables: dict[str, Any]) -> xr.Dataset:
        dataset = labelled(variables)
        coords: dict[str, Any] = {}
        features = self.data.feature_names
        for dim, size in dataset.sizes.items():
            if (
                features is not None
                and dim in {f"{name}_dim" for name in self.arrays["observed_data"]}
                and size == len(features)
            ):
                coords[str(dim)] = features
        return dataset.assign_coords(coords)


def _smoothed(log_weights: np.ndarray) -> np.ndarray:
    """Return Pareto-smoothed log weights of every datum, ``[draws, data]``."""
    if not ARVIZ_1:
        return np.asarray(az.psislw(log_weights.T.astype(float))[0]).T
    from arviz_stats.base import array_stats

    return np.asarray(array_stats.psislw(-log_weights.astype(float), axis=0)[0]).T  # it takes minus the log weights


def _systematic(weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw as many indices as there are weights, by them, in random order, for every column of ``[draws, data]``."""
    count, size = weights.shape
    marks = (np.arange(count)[:, None] + generator.random(size)) / count
    edges = weights.cumsum(0)
    found = np.stack([np.searchsorted(edges[:, i], marks[:, i]) for i in range(size)], axis=1)
    return generator.permuted(found.clip(max=count - 1), axis=0)
