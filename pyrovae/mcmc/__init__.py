"""Markov chains over the latents of many observations at once: transitions, annealing, reference posteriors."""
