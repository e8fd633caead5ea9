"""Variational autoencoders as explicit Pyro model/guide pairs: fitted, evaluated and compared per observation."""

import importlib
from typing import TYPE_CHECKING, Any

from pyrovae.common.version import __version__ as __version__

if TYPE_CHECKING:
    from pyrovae import data, guides, likelihoods, models, nn, objectives, plots, priors
    from pyrovae.app.comparison import compare
    from pyrovae.app.tabulation import comparison, cross_validation, main_effects
    from pyrovae.arviz.psense import for_psense
    from pyrovae.arviz.pyro_svi import from_pyro_svi
    from pyrovae.arviz.ranks import ranks_to_arviz
    from pyrovae.data.table import describe
    from pyrovae.diagnostics.calibration.lc2st import LC2ST, lc2st
    from pyrovae.diagnostics.calibration.posterior_sbc import posterior_sbc
    from pyrovae.diagnostics.calibration.ranks import Ranks
    from pyrovae.diagnostics.calibration.recovery import Recovery, recovery
    from pyrovae.diagnostics.calibration.sbc import Calibration, sbc
    from pyrovae.diagnostics.diagnostic import Diagnostic, Fitted, register
    from pyrovae.diagnostics.evidence.ais import Annealing, ais
    from pyrovae.diagnostics.evidence.bayes_factors import bayes_factors
    from pyrovae.diagnostics.evidence.bdmc import Sandwich, bdmc
    from pyrovae.diagnostics.evidence.elpd import elpd, elpd_comparison
    from pyrovae.diagnostics.evidence.evaluate import Evaluation, evaluate, worst
    from pyrovae.diagnostics.evidence.evidence import Evidence, evidence
    from pyrovae.diagnostics.evidence.gaps import Gaps, gaps
    from pyrovae.diagnostics.evidence.stacking import stacking
    from pyrovae.diagnostics.latents.aggregate import Aggregate, aggregate
    from pyrovae.diagnostics.latents.codes import codes
    from pyrovae.diagnostics.latents.disentanglement import disentanglement
    from pyrovae.diagnostics.latents.labels import label_scores
    from pyrovae.diagnostics.latents.prior import PriorTest, prior_against_posterior, prior_test
    from pyrovae.diagnostics.latents.prior_gain import PriorGain, prior_gain
    from pyrovae.diagnostics.latents.rates import rates
    from pyrovae.diagnostics.latents.usage import Usage, usage
    from pyrovae.diagnostics.posterior.globals_to_arviz import globals_to_arviz
    from pyrovae.diagnostics.posterior.guide_error import guide_error
    from pyrovae.diagnostics.posterior.reprior import Reprior, reprior
    from pyrovae.diagnostics.posterior.sensitivity import Sensitivity, sensitivity
    from pyrovae.diagnostics.posterior.to_arviz import to_arviz
    from pyrovae.diagnostics.predictive.checks import posterior_predictive_check, prior_predictive_check
    from pyrovae.diagnostics.predictive.misspecification import Misspecification, misspecification
    from pyrovae.diagnostics.predictive.pit import pit
    from pyrovae.diagnostics.predictive.sample_quality import sample_quality
    from pyrovae.diagnostics.predictive.simulate import Simulation, simulate
    from pyrovae.importance.log_weights import log_weights
    from pyrovae.importance.options import Options
    from pyrovae.importance.psis import draws_needed, khat_limit, pareto_khat
    from pyrovae.mcmc.hmc import hmc
    from pyrovae.programs.handlers import given
    from pyrovae.training import Fit, FitError, FitInterrupted, fit, load
    from pyrovae.uses.anomalies import anomaly
    from pyrovae.uses.augmentation import Augmented, augment
    from pyrovae.uses.clusters import Clusters, cluster
    from pyrovae.uses.compression import Compressed, compress, decompress
    from pyrovae.uses.elicitation import Elicited, elicit
    from pyrovae.uses.generation import decode, reconstruct, sample
    from pyrovae.uses.imputation import Imputations, impute
    from pyrovae.uses.neighbours import neighbours
    from pyrovae.uses.posterior import Posterior, posterior
    from pyrovae.uses.projection import Projection, project
    from pyrovae.uses.space import attribute, exchange, interpolate, traverse
    from pyrovae.uses.statements import Probability, Quantiles
    from pyrovae.uses.values import Values

_CATALOGUES = ("data", "guides", "likelihoods", "models", "nn", "objectives", "plots", "priors")
_NAMES = {
    "Aggregate": "diagnostics.latents.aggregate",
    "Annealing": "diagnostics.evidence.ais",
    "Augmented": "uses.augmentation",
    "Calibration": "diagnostics.calibration.sbc",
    "Clusters": "uses.clusters",
    "Compressed": "uses.compression",
    "Diagnostic": "diagnostics.diagnostic",
    "Elicited": "uses.elicitation",
    "Evaluation": "diagnostics.evidence.evaluate",
    "Evidence": "diagnostics.evidence.evidence",
    "Fit": "training",
    "FitError": "training",
    "FitInterrupted": "training",
    "Fitted": "diagnostics.diagnostic",
    "Gaps": "diagnostics.evidence.gaps",
    "Imputations": "uses.imputation",
    "LC2ST": "diagnostics.calibration.lc2st",
    "Misspecification": "diagnostics.predictive.misspecification",
    "Options": "importance.options",
    "Posterior": "uses.posterior",
    "PriorGain": "diagnostics.latents.prior_gain",
    "PriorTest": "diagnostics.latents.prior",
    "Probability": "uses.statements",
    "Projection": "uses.projection",
    "Quantiles": "uses.statements",
    "Ranks": "diagnostics.calibration.ranks",
    "Recovery": "diagnostics.calibration.recovery",
    "Reprior": "diagnostics.posterior.reprior",
    "Sandwich": "diagnostics.evidence.bdmc",
    "Sensitivity": "diagnostics.posterior.sensitivity",
    "Simulation": "diagnostics.predictive.simulate",
    "Usage": "diagnostics.latents.usage",
    "Values": "uses.values",
    "aggregate": "diagnostics.latents.aggregate",
    "ais": "diagnostics.evidence.ais",
    "anomaly": "uses.anomalies",
    "attribute": "uses.space",
    "augment": "uses.augmentation",
    "bayes_factors": "diagnostics.evidence.bayes_factors",
    "bdmc": "diagnostics.evidence.bdmc",
    "cluster": "uses.clusters",
    "codes": "diagnostics.latents.codes",
    "compare": "app.comparison",
    "comparison": "app.tabulation",
    "compress": "uses.compression",
    "cross_validation": "app.tabulation",
    "decode": "uses.generation",
    "decompress": "uses.compression",
    "describe": "data.table",
    "disentanglement": "diagnostics.latents.disentanglement",
    "draws_needed": "importance.psis",
    "elicit": "uses.elicitation",
    "elpd": "diagnostics.evidence.elpd",
    "elpd_comparison": "diagnostics.evidence.elpd",
    "evaluate": "diagnostics.evidence.evaluate",
    "evidence": "diagnostics.evidence.evidence",
    "exchange": "uses.space",
    "fit": "training",
    "for_psense": "arviz.psense",
    "from_pyro_svi": "arviz.pyro_svi",
    "gaps": "diagnostics.evidence.gaps",
    "given": "programs.handlers",
    "globals_to_arviz": "diagnostics.posterior.globals_to_arviz",
    "guide_error": "diagnostics.posterior.guide_error",
    "hmc": "mcmc.hmc",
    "impute": "uses.imputation",
    "interpolate": "uses.space",
    "khat_limit": "importance.psis",
    "label_scores": "diagnostics.latents.labels",
    "lc2st": "diagnostics.calibration.lc2st",
    "load": "training",
    "log_weights": "importance.log_weights",
    "main_effects": "app.tabulation",
    "misspecification": "diagnostics.predictive.misspecification",
    "neighbours": "uses.neighbours",
    "pareto_khat": "importance.psis",
    "pit": "diagnostics.predictive.pit",
    "posterior": "uses.posterior",
    "posterior_predictive_check": "diagnostics.predictive.checks",
    "posterior_sbc": "diagnostics.calibration.posterior_sbc",
    "prior_against_posterior": "diagnostics.latents.prior",
    "prior_gain": "diagnostics.latents.prior_gain",
    "prior_predictive_check": "diagnostics.predictive.checks",
    "prior_test": "diagnostics.latents.prior",
    "project": "uses.projection",
    "ranks_to_arviz": "arviz.ranks",
    "rates": "diagnostics.latents.rates",
    "reconstruct": "uses.generation",
    "recovery": "diagnostics.calibration.recovery",
    "register": "diagnostics.diagnostic",
    "reprior": "diagnostics.posterior.reprior",
    "sample": "uses.generation",
    "sample_quality": "diagnostics.predictive.sample_quality",
    "sbc": "diagnostics.calibration.sbc",
    "sensitivity": "diagnostics.posterior.sensitivity",
    "simulate": "diagnostics.predictive.simulate",
    "stacking": "diagnostics.evidence.stacking",
    "to_arviz": "diagnostics.posterior.to_arviz",
    "traverse": "uses.space",
    "usage": "diagnostics.latents.usage",
    "worst": "diagnostics.evidence.evaluate",
}

__all__ = [
    "LC2ST",
    "Aggregate",
    "Annealing",
    "Augmented",
    "Calibration",
    "Clusters",
    "Compressed",
    "Diagnostic",
    "Elicited",
    "Evaluation",
    "Evidence",
    "Fit",
    "FitError",
    "FitInterrupted",
    "Fitted",
    "Gaps",
    "Imputations",
    "Misspecification",
    "Options",
    "Posterior",
    "PriorGain",
    "PriorTest",
    "Probability",
    "Projection",
    "Quantiles",
    "Ranks",
    "Recovery",
    "Reprior",
    "Sandwich",
    "Sensitivity",
    "Simulation",
    "Usage",
    "Values",
    "aggregate",
    "ais",
    "anomaly",
    "attribute",
    "augment",
    "bayes_factors",
    "bdmc",
    "cluster",
    "codes",
    "compare",
    "comparison",
    "compress",
    "cross_validation",
    "data",
    "decode",
    "decompress",
    "describe",
    "disentanglement",
    "draws_needed",
    "elicit",
    "elpd",
    "elpd_comparison",
    "evaluate",
    "evidence",
    "exchange",
    "fit",
    "for_psense",
    "from_pyro_svi",
    "gaps",
    "given",
    "globals_to_arviz",
    "guide_error",
    "guides",
    "hmc",
    "impute",
    "interpolate",
    "khat_limit",
    "label_scores",
    "lc2st",
    "likelihoods",
    "load",
    "log_weights",
    "main_effects",
    "misspecification",
    "models",
    "neighbours",
    "nn",
    "objectives",
    "pareto_khat",
    "pit",
    "plots",
    "posterior",
    "posterior_predictive_check",
    "posterior_sbc",
    "prior_against_posterior",
    "prior_gain",
    "prior_predictive_check",
    "prior_test",
    "priors",
    "project",
    "ranks_to_arviz",
    "rates",
    "reconstruct",
    "recovery",
    "register",
    "reprior",
    "sample",
    "sample_quality",
    "sbc",
    "sensitivity",
    "simulate",
    "stacking",
    "to_arviz",
    "traverse",
    "usage",
    "worst",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that ArviZ and matplotlib load only where they are used."""
    if name in _CATALOGUES or name in _NAMES:
        from pyrovae.programs.isolation import importing

        with importing():
            module = importlib.import_module(f"pyrovae.{_NAMES.get(name, name)}")
        return module if name in _CATALOGUES else getattr(module, name)
    raise AttributeError(f"module 'pyrovae' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*__all__, "__version__"])
