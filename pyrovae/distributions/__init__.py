"""Distributions that are precise where single precision is not, and supports as maps from the real line need them."""
