"""Markov chains over the latents of many data at once: Hamiltonian transitions, annealing, reference posteriors."""

from pyrovae.sampling.annealing import Annealed, Annealer, CannotScore, Schedule, prior_guide
from pyrovae.sampling.coordinates import Coordinates, PriorGuide

__all__ = ["Annealed", "Annealer", "CannotScore", "Coordinates", "PriorGuide", "Schedule", "prior_guide"]
