"""Ranks that are uniform where something is calibrated."""
