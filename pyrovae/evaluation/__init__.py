"""Questions asked of a pair: per datum, in nats, with standard errors."""

from pyrovae.evaluation.ais import Annealing, Sandwich, ais, bdmc
from pyrovae.evaluation.draws import CONDITIONAL, GROUPS, Draws, draw
from pyrovae.evaluation.evaluate import Evaluation, evaluate, weigh, worst
from pyrovae.evaluation.evidence import Evidence, evidence
from pyrovae.evaluation.gaps import Gaps, gaps
from pyrovae.evaluation.guide_error import guide_error
from pyrovae.evaluation.predictive import pit, posterior_predictive_check, prior_predictive_check
from pyrovae.evaluation.psis import draws_needed, khat_limit, pareto_khat, trusted_on_average
from pyrovae.evaluation.ranks import Ranks
from pyrovae.evaluation.rates import rates
from pyrovae.evaluation.sample_quality import sample_quality
from pyrovae.evaluation.simulation import Simulation, simulate

__all__ = [
    "CONDITIONAL",
    "GROUPS",
    "Annealing",
    "Draws",
    "Evaluation",
    "Evidence",
    "Gaps",
    "Ranks",
    "Sandwich",
    "Simulation",
    "ais",
    "bdmc",
    "draw",
    "draws_needed",
    "evaluate",
    "evidence",
    "gaps",
    "guide_error",
    "khat_limit",
    "pareto_khat",
    "pit",
    "posterior_predictive_check",
    "prior_predictive_check",
    "rates",
    "sample_quality",
    "simulate",
    "trusted_on_average",
    "weigh",
    "worst",
]
