"""Objectives: each is a ``pyro.infer.ELBO``, usable both in ``pyro.infer.SVI`` and in :func:`pyrovae.fit`.

Pyro's own objectives keep their names: one with a sampled KL, one with the KL in closed form where there is one, and
one with discrete latents summed out. Ours weigh every observation by itself; their docstrings say which are bounds.
"""

from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

from pyrovae.objectives.adversarial import VAEGAN, Adversarial, AdversarialAutoencoder, FactorVAE
from pyrovae.objectives.aggregate import DIPVAE, MMD, BetaTCVAE
from pyrovae.objectives.elbo import BetaELBO, CapacityELBO, FreeBits
from pyrovae.objectives.importance import CIWAE, IWAE, PIWAE, VIMCO
from pyrovae.objectives.objective import Objective
from pyrovae.objectives.renyi import Chi, Renyi
from pyrovae.objectives.schedules import constant, cyclical, linear, sigmoid
from pyrovae.objectives.semi_supervised import SemiSupervisedELBO
from pyrovae.objectives.wake_sleep import WakeSleep

__all__ = [
    "CIWAE",
    "DIPVAE",
    "IWAE",
    "MMD",
    "PIWAE",
    "VAEGAN",
    "VIMCO",
    "Adversarial",
    "AdversarialAutoencoder",
    "BetaELBO",
    "BetaTCVAE",
    "CapacityELBO",
    "Chi",
    "FactorVAE",
    "FreeBits",
    "Objective",
    "Renyi",
    "SemiSupervisedELBO",
    "TraceEnum_ELBO",
    "TraceMeanField_ELBO",
    "Trace_ELBO",
    "WakeSleep",
    "constant",
    "cyclical",
    "linear",
    "sigmoid",
]
