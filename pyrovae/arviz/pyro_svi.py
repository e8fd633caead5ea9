"""Draws of any Pyro model and guide as an ArviZ object, in the manner of ArviZ's ``from_numpyro_svi``."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyrovae.arviz.labels import as_integers, assemble, labelled
from pyrovae.common.checks import at_least
from pyrovae.programs.isolation import importing, modes, random_state
from pyrovae.programs.pair import Pair
from pyrovae.programs.sites import is_discrete, is_factor

SAMPLE = ("chain", "draw")


def from_pyro_svi(
    svi: Any = None,
    *,
    model: Any = None,
    guide: Any = None,
    model_args: Sequence[Any] = (),
    model_kwargs: Mapping[str, Any] | None = None,
    prior: Any = None,
    posterior_predictive: Any = None,
    predictions: Mapping[str, Any] | None = None,
    constant_data: Mapping[str, Any] | None = None,
    predictions_constant_data: Mapping[str, Any] | None = None,
    log_likelihood: bool = False,
    index_origin: int = 0,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    pred_dims: Mapping[str, Sequence[str]] | None = None,
    num_samples: int = 1000,
    seed: int = 0,
) -> Any:
    """Convert a Pyro model and guide, fitted by SVI, to an ArviZ object.

    The model and guide may be any that ``pyro.infer.SVI`` takes, of this library or not: they are run as they are, and
    need not keep this library's contract. :func:`pyrovae.to_arviz` does more for those that do: importance weights,
    k-hat and the marginal likelihood of each observation. Draws are those of the guide, independent, in one chain, so
    that R-hat says nothing about them. Dimensions are named by the plates.

    Args:
        svi: a ``pyro.infer.SVI``, whose ``model`` and ``guide`` are taken.
        model: the model, if there is no ``svi``.
        guide: the guide, if there is no ``svi``; None makes no posterior.
        model_args: arguments of both, as they were fitted.
        model_kwargs: keyword arguments of both.
        prior: draws of the prior by site, ``[S, ...]``; True draws them.
        posterior_predictive: draws by observed site, ``[S, ...]``; True draws them.
        predictions: draws for other data, by site, ``[S, ...]``.
        constant_data: covariates by name.
        predictions_constant_data: covariates of the predictions by name.
        log_likelihood: whether to add log p(x | draw) of every observed site, ``[S, plates]``, nats, without scales and
            0 where it is masked; and, as ``log_prior``, the log densities of the latents.
        index_origin: number of the first row of a plate.
        coords: coordinates by dimension.
        dims: names of dimensions by site, without those of the draws; None: plates, then ``<site>_dim_0``, ....
        pred_dims: the same for predictions.
        num_samples: number of draws S.
        seed: seed of the draws; the caller's random state stays as it is.

    Returns:
        ``arviz.InferenceData`` with ArviZ 0.x, ``xarray.DataTree`` with 1.x, with the groups posterior, prior,
        posterior_predictive, log_likelihood, log_prior, predictions, observed_data and constant_data that were
        asked for.

    Raises:
        ValueError: for neither ``svi`` nor ``model``, both, or nothing to convert; for a latent that the guide leaves
            out (of which a run has a draw of the prior alone), and for a plate that draws a subsample in every run.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("mean", dist.Normal(x.mean(), 0.1))
        >>> found = from_pyro_svi(model=model, guide=guide, model_args=(torch.zeros(5),), log_likelihood=True)
        >>> found.log_likelihood["x"].dims
        ('chain', 'draw', 'data')
    """
    if (svi is None) == (model is None):
        raise ValueError("give an SVI or a model (and its guide), one of the two")
    model, guide = (svi.model, svi.guide) if svi is not None else (model, guide)
    num_samples = at_least("num_samples", num_samples, 1)
    converter = _Converter(model, guide, tuple(model_args), dict(model_kwargs or {}), num_samples, seed)
    with modes(Pair(model, guide or model).all_modules, training=False):
        drawn = converter.groups(prior is True, posterior_predictive is True, log_likelihood)
        seen = converter.observed()
    for name, given in (("prior", prior), ("posterior_predictive", posterior_predictive), ("predictions", predictions)):
        if isinstance(given, Mapping):
            drawn[name] = {site: np.asarray(torch.as_tensor(value).detach().cpu()) for site, value in given.items()}
    constants = {"constant_data": constant_data, "predictions_constant_data": predictions_constant_data}
    constants = {name: {k: np.asarray(v) for k, v in given.items()} for name, given in constants.items() if given}
    if not drawn and not constants:
        raise ValueError("there is nothing to convert: give a guide, or prior, posterior_predictive or predictions")
    labels = _Labels(converter.plates, dict(dims or {}), dict(pred_dims or {}), dict(coords or {}), index_origin)
    groups = {name: labels.dataset(name, variables, SAMPLE) for name, variables in drawn.items()}
    groups |= {name: labels.dataset(name, v, ()) for name, v in {**seen, **constants}.items() if v}
    return assemble(groups)


class _Converter:
    """Runs of a model and a guide.

    Attributes:
        plates: names of the plates around each site, from the left.
    """

    def __init__(
        self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any], count: int, seed: int
    ) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self.count, self.seed = count, seed
        self.plates: dict[str, list[str]] = {}
        self._observed: dict[str, np.ndarray] = {}
        self._discrete: set[str] = set()

    def groups(self, prior: bool, predictive: bool, log_likelihood: bool) -> dict[str, dict[str, np.ndarray]]:
        """Return draws by group and site, ``[S, ...]``."""
        rows: dict[str, dict[str, list[Tensor]]] = {}
        with random_state("pyro svi", self.seed), torch.no_grad():
            for _ in range(self.count):
                if self.guide is not None:
                    self._draw(rows, predictive, log_likelihood)
                if prior:
                    trace = self._run(poutine.uncondition(self.model))
                    self._keep(rows, "prior", trace, self._latents(trace))
        return {g: {n: self._array(n, torch.stack(v)) for n, v in sites.items()} for g, sites in rows.items()}

    def _array(self, name: str, values: Tensor) -> np.ndarray:
        array = values.detach().cpu().numpy()
        return as_integers(array) if name in self._discrete else array

    def observed(self) -> dict[str, dict[str, np.ndarray]]:
        """Return the observed values by site."""
        if not self._observed:
            with random_state("pyro svi", self.seed), torch.no_grad():
                self._note(self._run(self.model))
        return {"observed_data": self._observed}

    def _draw(self, rows: dict[str, dict[str, list[Tensor]]], predictive: bool, log_likelihood: bool) -> None:
        guide_trace = self._run(self.guide)
        trace = self._run(poutine.replay(self.model, trace=guide_trace))
        self._note(trace)
        self._see_that_all_are_drawn(trace, guide_trace)
        self._keep(rows, "posterior", trace, self._latents(trace))
        if predictive:
            again = self._run(poutine.uncondition(poutine.replay(self.model, trace=guide_trace)))
            self._keep(rows, "posterior_predictive", again, list(self._observed))
        for name in self._observed if log_likelihood else ():
            site = trace.nodes[name]
            if not self.plates[name] and "log_likelihood" not in rows:
                warnings.warn(
                    f"{name!r} is in no plate, so that its log likelihood is one number per draw: put the observations "
                    "into a plate to leave out one at a time",
                    stacklevel=5,
                )
            rows.setdefault("log_likelihood", {}).setdefault(name, []).append(_log_prob(site))
        for name, site in trace.nodes.items() if log_likelihood else ():
            if _counts(site) and name not in self._observed and not site["infer"].get("_deterministic"):
                rows.setdefault("log_prior", {}).setdefault(name, []).append(_log_prob(site))

    def _see_that_all_are_drawn(self, trace: Any, guide_trace: Any) -> None:
        for name in self._latents(trace):
            if name not in guide_trace.nodes and not trace.nodes[name]["infer"].get("_deterministic"):
                raise ValueError(
                    f"the guide has no site {name!r}, so that there are no draws of its posterior: sample it in the "
                    "guide, or sum it out by a model without it"
                )

    def _run(self, program: Any) -> Any:
        try:
            trace = poutine.trace(program).get_trace(*self.args, **self.kwargs)
        except TypeError as error:
            raise ValueError(f"the programs do not take model_args and model_kwargs as given: {error}") from error
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and poutine.util.site_is_subsample(site):
                fn = site["fn"]
                if fn.subsample_size is not None and fn.subsample_size < fn.size:
                    raise ValueError(
                        f"the plate {name!r} draws {fn.subsample_size} of {fn.size} rows anew in every run: call the "
                        "programs with the whole set, without subsampling"
                    )
        return trace

    def _note(self, trace: Any) -> None:
        """Keep observed values and the names of the plates."""
        for name, site in trace.nodes.items():
            if _counts(site):
                frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
                self.plates[name] = [str(f.name) for f in sorted(frames, key=lambda frame: frame.dim)]
                if site["is_observed"] and not site["infer"].get("_deterministic"):
                    if is_discrete(site["fn"]):
                        self._discrete.add(name)
                    self._observed[name] = self._array(name, site["value"])

    def _latents(self, trace: Any) -> list[str]:
        """Return the latent and deterministic sites of a model's trace."""
        return [name for name, site in trace.nodes.items() if _counts(site) and name not in self._observed]

    def _keep(self, rows: dict[str, dict[str, list[Tensor]]], group: str, trace: Any, names: Sequence[str]) -> None:
        for name in names:
            rows.setdefault(group, {}).setdefault(name, []).append(trace.nodes[name]["value"].detach())


def _log_prob(site: Any) -> Tensor:
    density: Tensor = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
    return density


def _counts(site: Any) -> bool:
    """Whether a site holds a value of the model: no subsample, no factor."""
    return site["type"] == "sample" and not poutine.util.site_is_subsample(site) and not is_factor(site)


class _Labels:
    def __init__(
        self, plates: dict[str, list[str]], dims: dict[str, Any], pred_dims: dict[str, Any], coords: dict[str, Any],
        origin: int,
    ) -> None:  # fmt: skip
        self.plates, self.dims, self.pred_dims, self.coords, self.origin = plates, dims, pred_dims, coords, origin

    @importing()
    def dataset(self, group: str, variables: Mapping[str, np.ndarray], sample: tuple[str, ...]) -> xr.Dataset:
        named = {}
        for name, value in variables.items():
            value = value[None] if sample else value
            named[name] = (*sample, *self._own(group, name, value.ndim - len(sample))), value
        dataset = labelled(named)
        numbers = {d: np.arange(n) + self.origin for d, n in dataset.sizes.items() if d not in SAMPLE}
        own = {d: v for d, v in self.coords.items() if d in dataset.sizes and len(v) == dataset.sizes[d]}
        return dataset.assign_coords({**numbers, **own})

    def _own(self, group: str, name: str, ndim: int) -> list[str]:
        """Return names of a value's dimensions: as given, or the plates and then the value's own."""
        given = (self.pred_dims if group.startswith("predictions") else self.dims).get(name, self.plates.get(name, []))
        names = (
            [str(one) for one in given][:ndim]
            if group not in ("log_likelihood", "log_prior")
            else self.plates.get(name, [])[:ndim]
        )
        return [*names, *(f"{name}_dim_{k}" for k in range(ndim - len(names)))]
