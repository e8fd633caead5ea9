"""The guide beside the posterior, and both as ArviZ objects."""
