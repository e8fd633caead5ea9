"""The pair's draws and densities as an ArviZ object, for ArviZ 0.23 (``InferenceData``) and 1.x (``DataTree``)."""

import inspect
from importlib.metadata import version
from typing import Any

import arviz as az
import numpy as np
import pyro
import torch
import xarray as xr

from pyrovae.checks import at_least
from pyrovae.compiled import check_mode
from pyrovae.data import Data
from pyrovae.evaluation import GROUPS, KHAT_LIMIT, Draws, Evaluation, draw, evaluate
from pyrovae.pair import Program
from pyrovae.particles import BATCH_SIZE, question
from pyrovae.sampling.chains import Sampler

ARVIZ_1 = int(az.__version__.split(".")[0]) >= 1


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
    return _assemble(collected.datasets(evaluation))


def hmc(
    model: Program,
    guide: Program,
    data: Any,
    *,
    num_chains: int = 4,
    num_warmup: int = 500,
    num_draws: int = 500,
    num_steps: int = 8,
    dense: bool = True,
    max_bytes: int = 4 * 2**30,
    batch_size: int = 256,
    seed: int = 0,
    compile: bool | str = "auto",
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Any:
    """Sample the exact posterior of every datum's latents, given the model's parameters, by Hamiltonian Monte Carlo.

    All data and all chains of a batch move at once, in unconstrained coordinates. Chains start at the guide's draws;
    each datum has a step size and a metric of its own, adapted while warming up. Trajectories have random lengths of up
    to half a period of a Gaussian posterior.

    - ``posterior``: draws of every latent site, dimensions ``chain``, ``draw``, ``datum``, further plates, events.
    - ``sample_stats``: ``lp`` (log p(x, z), with the Jacobian of unconstrained coordinates, in nats),
      ``acceptance_rate`` and ``diverging`` of every draw; ``step_size`` of every datum; ``rhat``, ``ess_bulk`` and
      ``ess_tail`` of every datum, by ArviZ, the worst over its latents. Do not trust a datum with ``rhat`` above 1.01.
    - ``observed_data``.

    Source: Neal, "MCMC using Hamiltonian dynamics", 2011; Vehtari et al., "Rank-normalization, folding, and
    localization: an improved R-hat", 2021.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``, where chains start.
        data: a tensor, a tuple of tensors, or a data set.
        num_chains: chains a datum.
        num_warmup: transitions of every chain that adapt it, and are thrown away.
        num_draws: transitions of every chain that are kept.
        num_steps: leapfrog steps of a transition; each costs a gradient of the model.
        dense: whether a metric holds correlations (memory grows with the square of the number of latents of a datum),
            or scales alone.
        max_bytes: refuse draws that take more memory than this.
        batch_size: data whose chains move at once.
        seed: of the chains.
        compile: whether the model's gradient is traced once and compiled; "auto" does so where it saves more time than
            it costs.
        device: None means CUDA where there is one.
        progress: whether to show a progress bar.

    Returns:
        ``arviz.InferenceData`` with ArviZ 0.x, ``xarray.DataTree`` with 1.x.

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, a latent that cannot be moved along a
            gradient, or draws beyond ``max_bytes``.
    """
    at_least("num_chains", num_chains, 1)
    at_least("num_warmup", num_warmup, 20)
    at_least("num_draws", num_draws, 4)
    at_least("num_steps", num_steps, 1)
    at_least("batch_size", batch_size, 1)
    check_mode(compile)
    with question(model, guide, data, seed=seed, device=device) as asked, pyro.validation_enabled(False):
        label = "hmc" if progress else None
        sampler = Sampler(asked, num_chains, num_warmup, num_draws, num_steps, dense, batch_size, compile, label)
        _refuse_beyond(max_bytes, 8 * num_chains * num_draws * len(asked.data) * (sampler.coordinates.dim + 3))
        parts = list(sampler.batches())
        plates = sampler.coordinates.plates
        names = {site.source: site.name for site in asked.layout.observed if site.source is not None}
        observed = asked.data.to(torch.device("cpu")).batch(slice(0, len(asked.data)))
    posterior: dict[str, Any] = {}
    for name in parts[0].values:
        values = torch.cat([part.values[name] for part in parts], dim=2).numpy()
        posterior[name] = ("chain", "draw", *_own_dims(name, values.ndim - 3, plates[name])), values
    drawn = ("chain", "draw", "datum")
    stats: dict[str, Any] = {
        "lp": (drawn, torch.cat([part.log_joint for part in parts], dim=2).numpy()),
        "acceptance_rate": (drawn, torch.cat([part.acceptance for part in parts], dim=2).numpy()),
        "diverging": (drawn, torch.cat([part.divergent for part in parts], dim=2).numpy()),
        "step_size": ("datum", torch.cat([part.step_size for part in parts]).numpy()),
    }
    draws = _labelled(posterior)
    stats.update(_mixing(draws))
    seen = {n: (_own_dims(n, observed[i].dim() - 1, []), observed[i].numpy()) for i, n in names.items()}
    groups = {"posterior": draws, "sample_stats": _labelled(stats), "observed_data": _labelled(seen)}
    return _assemble(groups)


def _mixing(draws: xr.Dataset) -> dict[str, tuple[str, np.ndarray]]:
    """Return R-hat and effective sample sizes of every datum, the worst over its latents."""
    found = {
        "rhat": (az.rhat(draws), "max"),
        "ess_bulk": (az.ess(draws, method="bulk"), "min"),
        "ess_tail": (az.ess(draws, method="tail"), "min"),
    }
    return {
        name: ("datum", getattr(np, kind)([_worst(v, kind) for v in values.data_vars.values()], axis=0))
        for name, (values, kind) in found.items()
    }


def _worst(values: xr.DataArray, kind: str) -> np.ndarray:
    others = [dim for dim in values.dims if dim != "datum"]
    return np.asarray(getattr(values, kind)(others) if others else values)


def _refuse_beyond(max_bytes: int, needed: int) -> None:
    if needed > max_bytes:
        raise ValueError(
            f"the draws would take {needed / 2**30:.1f} GiB, more than max_bytes={max_bytes / 2**30:.1f} GiB: "
            "pass fewer data, a smaller num_draws, or fewer groups"
        )


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
        _refuse_beyond(self.max_bytes, needed)
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
        own = _own_dims(name, ndim - 2, self.plates.get(name, []))
        return own if group == "observed_data" else ("chain", "draw", *own)

    def _dataset(self, variables: dict[str, Any]) -> xr.Dataset:
        dataset = _labelled(variables)
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


def _labelled(variables: dict[str, Any]) -> xr.Dataset:
    dataset = xr.Dataset(variables, attrs=_attributes())
    return dataset.assign_coords({str(dim): np.arange(size) for dim, size in dataset.sizes.items()})


def _own_dims(name: str, ndim: int, plates: list[str]) -> tuple[str, ...]:
    """Return the names of a site's dimensions from the datum on, of which there are ``ndim`` after it."""
    own = ndim - len(plates)
    events = [f"{name}_dim"] if own == 1 else [f"{name}_dim_{i}" for i in range(own)]
    return ("datum", *plates, *events)


def _attributes() -> dict[str, str]:
    return {
        "inference_library": "pyro",
        "inference_library_version": str(pyro.__version__),
        "creation_library": "pyrovae",
        "creation_library_version": version("pyrovae"),
    }


def _assemble(groups: dict[str, xr.Dataset]) -> Any:
    return xr.DataTree.from_dict(groups) if ARVIZ_1 else az.InferenceData(**groups)


def elpd(evaluation: Evaluation) -> Any:
    """Return held-out log evidence as the ELPD object that ``az.compare`` takes, so that it compares pairs.

    Its pointwise values are log p(x_i) of held-out data; nothing is left out of anything. ``pareto_k`` is that of the
    importance weights that estimated them. Summed over the data, as ArviZ does.

    Args:
        evaluation: of held-out data.
    """
    values = evaluation.log_evidence.numpy()
    pointwise = xr.DataArray(values, dims="datum", coords={"datum": np.arange(len(values))})
    khat = xr.DataArray(evaluation.khat.numpy(), dims="datum", coords={"datum": np.arange(len(values))})
    total, se = float(values.sum()), float(np.sqrt(len(values) * values.var()))
    warn = bool((evaluation.khat > KHAT_LIMIT).any())
    known: dict[str, Any] = {
        "se": se,
        "n_samples": evaluation.num_particles,
        "n_data_points": len(values),
        "warning": warn,
    }
    known.update({"scale": "log", "good_k": KHAT_LIMIT, "pareto_k": khat})
    if not ARVIZ_1:
        from arviz.stats.stats import ELPDData

        data = {"elpd_loo": total, "p_loo": 0.0, "loo_i": pointwise.rename("loo_i"), **known}
        order = (
            "elpd_loo",
            "se",
            "p_loo",
            "n_samples",
            "n_data_points",
            "warning",
            "loo_i",
            "pareto_k",
            "scale",
            "good_k",
        )
        return ELPDData(data=[data[key] for key in order], index=list(order))
    from arviz_stats import utils

    cls = getattr(utils, "ELPDDataLOO", utils.ELPDData)
    kind = {"kind": "loo"} if "kind" in inspect.signature(cls).parameters else {}
    return cls(elpd=total, p=0.0, elpd_i=pointwise, **known, **kind)
