"""Draws from prior, posterior and both predictive distributions, compared with the data."""
