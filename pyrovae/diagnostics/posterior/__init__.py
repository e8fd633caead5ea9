"""The guide compared with the posterior, and both as ArviZ objects."""
