"""Variational autoencoders as explicit Pyro model/guide pairs: fitted, judged and compared per datum."""

import importlib
from typing import TYPE_CHECKING, Any

from pyrovae.version import __version__ as __version__

if TYPE_CHECKING:
    from pyrovae import data, guides, likelihoods, models, nn, objectives, plots, priors
    from pyrovae.arviz import elpd, elpd_comparison, globals_to_arviz, hmc, ranks_to_arviz, to_arviz
    from pyrovae.calibration import Calibration, sbc
    from pyrovae.evaluation import (
        Annealing,
        Evaluation,
        Evidence,
        Gaps,
        Ranks,
        Sandwich,
        Simulation,
        ais,
        bdmc,
        draws_needed,
        evaluate,
        evidence,
        gaps,
        guide_error,
        khat_limit,
        pareto_khat,
        pit,
        posterior_predictive_check,
        prior_predictive_check,
        rates,
        sample_quality,
        simulate,
        worst,
    )
    from pyrovae.latents import (
        Aggregate,
        PriorTest,
        Usage,
        aggregate,
        codes,
        disentanglement,
        label_scores,
        prior_against_posterior,
        prior_test,
        usage,
    )
    from pyrovae.pair import given
    from pyrovae.strategies import compare, comparison
    from pyrovae.training import Fit, FitError, FitInterrupted, fit, load
    from pyrovae.weights import log_weights

_CATALOGUES = ("data", "guides", "likelihoods", "models", "nn", "objectives", "plots", "priors")
_NAMES = {
    "Aggregate": "latents",
    "Annealing": "evaluation",
    "Calibration": "calibration",
    "Evaluation": "evaluation",
    "Evidence": "evaluation",
    "Fit": "training",
    "FitError": "training",
    "FitInterrupted": "training",
    "Gaps": "evaluation",
    "PriorTest": "latents",
    "Ranks": "evaluation",
    "Sandwich": "evaluation",
    "Simulation": "evaluation",
    "Usage": "latents",
    "aggregate": "latents",
    "ais": "evaluation",
    "bdmc": "evaluation",
    "codes": "latents",
    "compare": "strategies",
    "comparison": "strategies",
    "disentanglement": "latents",
    "draws_needed": "evaluation",
    "elpd": "arviz",
    "elpd_comparison": "arviz",
    "evaluate": "evaluation",
    "evidence": "evaluation",
    "fit": "training",
    "gaps": "evaluation",
    "given": "pair",
    "globals_to_arviz": "arviz",
    "guide_error": "evaluation",
    "hmc": "arviz",
    "khat_limit": "evaluation",
    "label_scores": "latents",
    "load": "training",
    "log_weights": "weights",
    "pareto_khat": "evaluation",
    "pit": "evaluation",
    "posterior_predictive_check": "evaluation",
    "prior_against_posterior": "latents",
    "prior_predictive_check": "evaluation",
    "prior_test": "latents",
    "ranks_to_arviz": "arviz",
    "rates": "evaluation",
    "sample_quality": "evaluation",
    "sbc": "calibration",
    "simulate": "evaluation",
    "to_arviz": "arviz",
    "usage": "latents",
    "worst": "evaluation",
}

__all__ = [
    "Aggregate",
    "Annealing",
    "Calibration",
    "Evaluation",
    "Evidence",
    "Fit",
    "FitError",
    "FitInterrupted",
    "Gaps",
    "PriorTest",
    "Ranks",
    "Sandwich",
    "Simulation",
    "Usage",
    "aggregate",
    "ais",
    "bdmc",
    "codes",
    "compare",
    "comparison",
    "data",
    "disentanglement",
    "draws_needed",
    "elpd",
    "elpd_comparison",
    "evaluate",
    "evidence",
    "fit",
    "gaps",
    "given",
    "globals_to_arviz",
    "guide_error",
    "guides",
    "hmc",
    "khat_limit",
    "label_scores",
    "likelihoods",
    "load",
    "log_weights",
    "models",
    "nn",
    "objectives",
    "pareto_khat",
    "pit",
    "plots",
    "posterior_predictive_check",
    "prior_against_posterior",
    "prior_predictive_check",
    "prior_test",
    "priors",
    "ranks_to_arviz",
    "rates",
    "sample_quality",
    "sbc",
    "simulate",
    "to_arviz",
    "usage",
    "worst",
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
