"""Random streams by name: what a call draws for one purpose is unrelated to what any call draws for another."""

import hashlib
from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np
import torch

LARGEST_SEED = 2**62
_SEEDS = 2**32  # distinct seeds of torch's generator on the CPU


def check_seed(seed: Any) -> int:
    """Return a call's seed as an int.

    Raises:
        ValueError: when ``seed`` is not a whole number in the range of seeds.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < LARGEST_SEED:
        raise ValueError(f"seed must be a whole number from 0 to 2**62, got {seed!r}")
    return int(seed)


def stream_seed(purpose: str, *numbers: int) -> int:
    """Return a seed below 2^62 that belongs to a purpose and to numbers (the call's seed, a step, ...).

    It is a hash of both, so that no arithmetic on seeds leads from one stream to another.
    """
    digest = hashlib.blake2b(repr((purpose, *map(int, numbers))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2


def generator(purpose: str, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator of torch that belongs to this purpose and these numbers alone."""
    return torch.Generator(device).manual_seed(stream_seed(purpose, *numbers))


def numpy_generator(purpose: str, *numbers: int) -> np.random.Generator:
    """Return a generator of NumPy that belongs to this purpose and these numbers alone."""
    return np.random.default_rng(stream_seed(purpose, *numbers))


def library_seed(purpose: str, *numbers: int) -> int:
    """Return a seed of 32 bits for a purpose and numbers, for libraries that take no larger seeds."""
    return stream_seed(purpose, *numbers) % _SEEDS


def datum_seeds(purpose: str, seed: int, indices: Iterable[int]) -> list[int]:
    """Return the seeds of the observations' own streams in one call, one seed per index.

    The seeds start at a number and go on by an odd stride. The purpose and the call's seed decide both. So all
    observations of a call have different seeds, and the seeds of two calls never run in parallel, shifted or not.
    """
    number = stream_seed(purpose, seed)
    start, stride = number % _SEEDS, (number // _SEEDS) * 2 + 1
    return [(start + stride * index) % _SEEDS for index in indices]
