"""What a pair's codes hold: how much, in which latents, and of what."""

from pyrovae.latents.prior import prior_against_posterior

__all__ = ["prior_against_posterior"]
