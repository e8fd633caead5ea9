"""The pair's draws and densities as an ArviZ object."""

import json
from dataclasses import replace
from math import prod
from typing import Any, Unpack

import numpy as np
import torch
import xarray as xr

from pyrovae.arviz.labels import as_integers, assemble, labelled, own_dims, refuse_beyond, refuse_names
from pyrovae.arviz.psis import smoothed
from pyrovae.common.checks import at_least
from pyrovae.diagnostics.evidence.evaluate import Evaluation, evaluate
from pyrovae.diagnostics.predictive.draws import DENSITIES, GROUPS, Draws, draw, feature_names, typed_columns
from pyrovae.importance.options import BATCH_SIZE, Options, shared_keywords
from pyrovae.importance.question import Question, ask
from pyrovae.importance.resampling import systematic
from pyrovae.programs.isolation import importing
from pyrovae.programs.sites import is_discrete
from pyrovae.programs.streams import numpy_generator
from pyrovae.programs.types import Program
from pyrovae.tables.encoding import from_codes


@shared_keywords(batch_size=BATCH_SIZE)
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
    **options: Unpack[Options],
) -> Any:
    """Return draws, densities and diagnostics of a pair on data as an ArviZ object.

    Variables have the names of their sites. Dimensions are ``chain`` (of length one), ``draw``, ``datum``, then the
    names of further plates, then ``<site>_dim`` (or ``<site>_dim_0``, ``<site>_dim_1``, ...).

    - ``posterior``: draws of the guide, q(z | x).
    - ``posterior_predictive``, ``prior``, ``prior_predictive``: new draws for each observation.
    - ``marginal_log_likelihood``: log p(x_i) of every observation, estimated by importance sampling. It has the name of
      the observed site, or ``data`` if there are several and it is their joint density. It has no draws, because the
      parameters are points: :func:`pyrovae.elpd` passes it to ``az.compare``, and ``az.loo`` has nothing to leave out.
    - ``observed_data``.
    - ``sample_stats``: ``log_weight`` of every posterior draw; ``khat``, ``ess``, ``elbo``, ``log_evidence`` and
      ``log_evidence_se`` of every observation, and its survey ``weight`` where the data have weights. R-hat says
      nothing about independent draws of a guide: look at ``khat``.
    - ``log_likelihood``, if ``groups`` contains it: the CONDITIONAL log p(x_i | z_i) of every posterior draw, by
      observed site, as ArviZ expects. Every observation has its own latents. Without x_i only the prior says anything
      about z_i, so that ``az.loo`` of this group is unreliable however good the fit. It also treats the guide's draws
      as posterior draws. Compare models by :func:`pyrovae.elpd` instead.
    - ``log_prior``, if ``groups`` contains it: log p(z_i) of every posterior draw, by latent site. With
      ``log_likelihood`` and ``corrected=True`` it is what ArviZ 1.x needs to scale the prior and the likelihood of
      single observations: ``az.psense_summary(found, coords=one, prior_coords=one, likelihood_coords=one)`` with
      ``one = {"datum": 3}``. :func:`pyrovae.sensitivity` does this for all observations.

    Source: Merkle, Furr and Rabe-Hesketh, "Bayesian comparison of latent variable models: conditional versus marginal
    likelihoods", 2019.

    Args:
        model: generative program ``model(*batch)``.
        guide: recognition program ``guide(*batch)``.
        data: a tensor, a tuple of tensors, or a data set, whose feature names become coordinates.
        num_draws: number of draws per observation in each group.
        num_particles: number of importance samples per observation for ``marginal_log_likelihood`` and the diagnostics.
        groups: groups to make: some of ``posterior``, ``posterior_predictive``, ``prior``, ``prior_predictive``
            (the default), ``log_likelihood`` and ``log_prior``.
        corrected: whether to resample the posterior and posterior predictive draws by their Pareto-smoothed importance
            weights, so that they follow p(z | x) instead of q(z | x). This does not correct an observation whose
            ``khat`` is above :func:`pyrovae.khat_limit`.
        max_bytes: largest size in memory of the groups of draws; larger ones are refused.
        **options: batch_size, seed, device and progress, as all questions take them (:class:`pyrovae.Options`).

    Returns:
        ``arviz.InferenceData`` with ArviZ 0.x, ``xarray.DataTree`` with 1.x.

    Raises:
        ValueError: for a pair that breaks the contract, bad data or bad numbers, draws beyond ``max_bytes``, a site or
            plate with the name of a dimension, or log densities of a model with latents that are summed out.
    """
    for name, count in {"num_draws": num_draws, "num_particles": num_particles}.items():
        at_least(name, count, 1)
    available = (*GROUPS, *DENSITIES)
    unknown = set(groups) - set(available)
    if unknown:
        raise ValueError(f"groups must be among {', '.join(available)}, got {', '.join(sorted(unknown))}")
    with ask(model, guide, data, takes_weights=True, **options) as question:
        buffers = _Buffers(question, num_draws, groups, max_bytes)
    evaluation = evaluate(model, guide, data, num_particles=num_particles, **options)
    with ask(model, guide, data, takes_weights=True, **options) as question:
        for part in draw(question, num_draws, groups, "draws"):
            buffers.add(part)
    if corrected:
        buffers.resample(options["seed"])
    buffers.in_own_units()
    buffers.number_discrete_values()
    return assemble(buffers.datasets(evaluation))


class _Buffers:
    """Arrays into which draws are written as they come.

    Args:
        question: the pair and its data. One draw for one observation shows the shapes of the arrays.
        num_draws: number of draws per observation.
        groups: groups of draws.
        max_bytes: largest size of the arrays.

    Raises:
        ValueError: for arrays that are larger, or names that variables cannot have.
    """

    def __init__(self, question: Question, num_draws: int, groups: tuple[str, ...], max_bytes: int) -> None:
        self.data, self.num_draws, self.position = question.data, num_draws, 0
        (one,) = draw(replace(question, data=question.data.subset(slice(0, 1)), batch_size=1), 1, groups, None)
        self.plates = one.plates
        self.features = {name: feature_names(question, name) for name in one.observed}
        self.columns = {name: typed_columns(question, name) for name in one.observed}
        self.discrete = [name for name in one.observed if is_discrete(one.traces[1].nodes[name]["fn"])]
        sites = (*question.layout.latents, *question.layout.summed, *one.observed)
        refuse_names({name: one.plates.get(name, []) for name in sites})
        shapes = {
            group: {name: ((num_draws, len(self.data), *v.shape[2:]), v.numpy().dtype) for name, v in sites.items()}
            for group, sites in _groups(one).items()
        }
        shapes["observed_data"] = {
            name: ((len(self.data), *v.shape[1:]), v.numpy().dtype) for name, v in one.observed.items()
        }
        refuse_beyond(max_bytes, sum(prod(s) * d.itemsize for sites in shapes.values() for s, d in sites.values()))
        self.arrays = {group: {name: np.empty(*s) for name, s in sites.items()} for group, sites in shapes.items()}

    def add(self, part: Draws) -> None:
        """Write one part of the draws into the arrays."""
        if self.position >= self.num_draws:
            self.position = 0
        count, rows = len(part.log_weight), slice(part.indices.start, part.indices.stop)
        for group, sites in _groups(part).items():
            for name, value in sites.items():
                self.arrays[group][name][self.position : self.position + count, rows] = value.numpy()
        for name, value in part.observed.items():
            self.arrays["observed_data"][name][rows] = value.numpy()
        self.position += count

    def resample(self, seed: int) -> None:
        """Resample each observation's posterior draws by their importance weights."""
        weights = np.exp(smoothed(self.arrays["sample_stats"]["log_weight"]))
        indices = systematic(weights / weights.sum(0), numpy_generator("draws by weight", seed), len(weights))
        for group in ("posterior", "posterior_predictive", *DENSITIES, "sample_stats"):
            for name, values in self.arrays.get(group, {}).items():
                index = indices.reshape(*indices.shape, *(1,) * (values.ndim - 2))
                self.arrays[group][name] = np.take_along_axis(values, index, axis=0)

    def in_own_units(self) -> None:
        """Turn values of a table's columns back into the columns' units; categories without numbers are numbered."""
        for group in ("posterior_predictive", "prior_predictive", "observed_data"):
            for name, values in self.arrays.get(group, {}).items():
                typed = self.columns.get(name)
                if typed is not None:
                    own = from_codes(typed[1].invert(torch.from_numpy(values)), typed[0])
                    self.arrays[group][name] = own.numpy()

    def number_discrete_values(self) -> None:
        """Turn values of discrete sites into integers, by which ArviZ knows them."""
        for group in ("posterior_predictive", "prior_predictive", "observed_data"):
            for name in self.discrete:
                if name in self.arrays.get(group, {}):
                    self.arrays[group][name] = as_integers(self.arrays[group][name])

    @importing()
    def datasets(self, evaluation: Evaluation) -> dict[str, xr.Dataset]:
        fields = ("khat", "ess", "elbo", "log_evidence", "log_evidence_se")
        per_datum = {name: ("datum", getattr(evaluation, name).numpy()) for name in fields}
        names = list(self.arrays["observed_data"])
        groups: dict[str, dict[str, Any]] = {
            group: {name: (self._dims(name, value.ndim, group), value[None]) for name, value in sites.items()}
            for group, sites in self.arrays.items()
            if group != "observed_data"
        }
        if evaluation.weights is not None:
            per_datum["weight"] = "datum", evaluation.weights.numpy()
        groups["sample_stats"].update(per_datum)
        marginal = "datum", evaluation.log_evidence.numpy()
        groups["marginal_log_likelihood"] = {names[0] if len(names) == 1 else "data": marginal}
        groups["observed_data"] = {
            name: (self._dims(name, value.ndim + 1, "observed_data"), value)
            for name, value in self.arrays["observed_data"].items()
        }
        return {name: self._dataset(variables) for name, variables in groups.items()}

    def _dims(self, name: str, ndim: int, group: str) -> tuple[str, ...]:
        per_datum = group in (*DENSITIES, "sample_stats")
        own = own_dims(name, ndim - 2, [] if per_datum else self.plates.get(name, []))
        return own if group == "observed_data" else ("chain", "draw", *own)

    def _dataset(self, variables: dict[str, Any]) -> xr.Dataset:
        dataset = labelled(variables, self.data.index)
        features = {f"{name}_dim": self.features[name] for name in self.arrays["observed_data"]}
        coordinates = {dim: names for dim, names in features.items() if names and dataset.sizes.get(dim) == len(names)}
        for name, typed in self.columns.items():
            if typed is not None and name in dataset:
                named = [column for column in typed[0] if column.levels and not column.has_numbers]
                levels = {column.name: list(map(str, column.levels)) for column in named}
                dataset[name].attrs["categories"] = json.dumps(levels, ensure_ascii=False)
        return dataset.assign_coords(coordinates)


def _groups(part: Draws) -> dict[str, dict[str, Any]]:
    return {**part.groups, "sample_stats": {"log_weight": part.log_weight}}
