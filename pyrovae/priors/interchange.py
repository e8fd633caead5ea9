"""Priors from distributions of PreliZ, and back."""

import importlib
import warnings
from typing import Any

from torch import Tensor

from pyrovae.priors.parametric import Parametric
from pyrovae.programs.isolation import importing

# hyperparameters of a family in Pyro, by their names in PreliZ
FAMILIES = {
    "Beta": {"alpha": "concentration1", "beta": "concentration0"},
    "Cauchy": {"alpha": "loc", "beta": "scale"},
    "Exponential": {"lam": "rate"},
    "Gamma": {"alpha": "concentration", "beta": "rate"},
    "Gumbel": {"mu": "loc", "beta": "scale"},
    "HalfCauchy": {"beta": "scale"},
    "HalfNormal": {"sigma": "scale"},
    "InverseGamma": {"alpha": "concentration", "beta": "rate"},
    "Laplace": {"mu": "loc", "b": "scale"},
    "LogNormal": {"mu": "loc", "sigma": "scale"},
    "Normal": {"mu": "loc", "sigma": "scale"},
    "StudentT": {"nu": "df", "mu": "loc", "sigma": "scale"},
    "Weibull": {"alpha": "concentration", "beta": "scale"},
}


def from_preliz(distribution: Any, latent_dim: int) -> Parametric:
    """Return a prior of independent latents with a distribution of PreliZ, its hyperparameters free.

    Args:
        distribution: a distribution of PreliZ with all its parameters, such as the result of ``pz.maxent``.
        latent_dim: number of latents.

    Raises:
        ValueError: for a family that Pyro does not have, or a parameter without a value.
    """
    family = type(distribution).__name__
    if family not in FAMILIES:
        raise ValueError(
            f"distribution must be one of PreliZ of a family that Pyro has, {', '.join(FAMILIES)}; got a {family}"
        )
    values = {}
    for theirs, ours in FAMILIES[family].items():
        value = getattr(distribution, theirs, None)
        if value is None:
            raise ValueError(f"the {family} has no value of {theirs!r}: fit it first, or give all its parameters")
        values[ours] = float(value)
    return Parametric(latent_dim, family, values)


def to_preliz(prior: Parametric) -> Any:
    """Return the distribution of PreliZ that a prior gives to each latent: one, or a list of one per latent.

    Raises:
        ValueError: for another prior, or a family that PreliZ does not have.
        ImportError: where PreliZ is not installed.
    """
    if not isinstance(prior, Parametric) or prior.family not in FAMILIES:
        what = prior.family if isinstance(prior, Parametric) else type(prior).__name__
        raise ValueError(f"{what} has no counterpart in PreliZ: give a Parametric of {', '.join(FAMILIES)}")
    with importing(), importlib.import_module("matplotlib").rc_context():  # PreliZ sets parameters of matplotlib
        warnings.simplefilter("ignore")  # about PyMC
        try:
            preliz = importlib.import_module("preliz")
        except ModuleNotFoundError as error:
            raise ImportError("PreliZ is not installed: pip install preliz") from error
    values = {theirs: prior.values()[ours].detach().cpu() for theirs, ours in FAMILIES[prior.family].items()}
    family = getattr(preliz, prior.family)
    if all(value.dim() == 0 for value in values.values()):
        return family(**{name: float(value) for name, value in values.items()})
    return [family(**{n: float(_at(v, d)) for n, v in values.items()}) for d in range(prior.latent_dim)]


def _at(value: Tensor, latent: int) -> Tensor:
    return value[latent] if value.dim() else value
