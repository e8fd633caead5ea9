"""Questions asked of a pair: per datum, in nats, with standard errors."""

from pyrovae.evaluation.compare import compare, comparison, programs
from pyrovae.evaluation.draws import GROUPS, Draws, draw
from pyrovae.evaluation.evaluate import KHAT_LIMIT, Evaluation, evaluate, weigh
from pyrovae.evaluation.prior_checks import prior_against_posterior, prior_predictive_check
from pyrovae.evaluation.psis import pareto_khat
from pyrovae.evaluation.rates import rates

__all__ = [
    "GROUPS",
    "KHAT_LIMIT",
    "Draws",
    "Evaluation",
    "compare",
    "comparison",
    "draw",
    "evaluate",
    "pareto_khat",
    "prior_against_posterior",
    "prior_predictive_check",
    "programs",
    "rates",
    "weigh",
]
