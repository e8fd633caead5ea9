"""Draws from prior, posterior and both predictive distributions, beside the data."""
