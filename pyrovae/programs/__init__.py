"""The contract of a pair, read through effect handlers: sites, densities, parameters, random numbers, compilation."""
