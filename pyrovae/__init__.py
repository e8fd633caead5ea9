"""Variational autoencoders as explicit Pyro model/guide pairs: fitted, judged and compared per datum."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrovae import data, guides, likelihoods, models, nn, objectives, plots, priors
    from pyrovae.arviz import elpd, to_arviz
    from pyrovae.evaluation import (
        Evaluation,
        compare,
        comparison,
        evaluate,
        pareto_khat,
        prior_against_posterior,
        prior_predictive_check,
        rates,
    )
    from pyrovae.pair import given
    from pyrovae.training import Fit, FitError, FitInterrupted, fit, load
    from pyrovae.weights import log_weights

try:
    __version__ = version("pyrovae")
except PackageNotFoundError:  # an uninstalled checkout
    __version__ = "unknown"

_CATALOGUES = ("data", "guides", "likelihoods", "models", "nn", "objectives", "plots", "priors")
_NAMES = {
    "Evaluation": "evaluation",
    "Fit": "training",
    "FitError": "training",
    "FitInterrupted": "training",
    "compare": "evaluation",
    "comparison": "evaluation",
    "elpd": "arviz",
    "evaluate": "evaluation",
    "fit": "training",
    "given": "pair",
    "load": "training",
    "log_weights": "weights",
    "pareto_khat": "evaluation",
    "prior_against_posterior": "evaluation",
    "prior_predictive_check": "evaluation",
    "rates": "evaluation",
    "to_arviz": "arviz",
}

__all__ = [
    "Evaluation",
    "Fit",
    "FitError",
    "FitInterrupted",
    "compare",
    "comparison",
    "data",
    "elpd",
    "evaluate",
    "fit",
    "given",
    "guides",
    "likelihoods",
    "load",
    "log_weights",
    "models",
    "nn",
    "objectives",
    "pareto_khat",
    "plots",
    "prior_against_posterior",
    "prior_predictive_check",
    "priors",
    "rates",
    "to_arviz",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that ArviZ and matplotlib load only where they are used."""
    if name in _CATALOGUES or name in _NAMES:
        from pyrovae.state import importing

        with importing():
            module = importlib.import_module(f"pyrovae.{_NAMES.get(name, name)}")
        return module if name in _CATALOGUES else getattr(module, name)
    raise AttributeError(f"module 'pyrovae' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*__all__, "__version__"])
