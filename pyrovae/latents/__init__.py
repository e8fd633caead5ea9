"""What a pair's codes hold: how much, in which latents, and of what."""

from pyrovae.latents.aggregate import Aggregate, aggregate
from pyrovae.latents.codes import codes
from pyrovae.latents.disentanglement import disentanglement
from pyrovae.latents.labels import label_scores
from pyrovae.latents.prior import PriorTest, prior_against_posterior, prior_test
from pyrovae.latents.usage import Usage, usage

__all__ = [
    "Aggregate",
    "PriorTest",
    "Usage",
    "aggregate",
    "codes",
    "disentanglement",
    "label_scores",
    "prior_against_posterior",
    "prior_test",
    "usage",
]
