"""Distributions that are precise where single precision is not, and supports for maps from the real line."""
