"""A question put to a pair, its particles and their log weights."""
