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
        ValueError: when it is none.
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
    """Return a generator of its own for a purpose and numbers."""
    return torch.Generator(device).manual_seed(stream_seed(purpose, *numbers))


def numpy_generator(purpose: str, *numbers: int) -> np.random.Generator:
    """Return a generator of NumPy's own for a purpose and numbers."""
    return np.random.default_rng(stream_seed(purpose, *numbers))


def library_seed(purpose: str, *numbers: int) -> int:
    """Return a seed for a purpose and numbers that libraries take who know 32 bits alone."""
    return stream_seed(purpose, *numbers) % _SEEDS


def datum_seeds(purpose: str, seed: int, indices: Iterable[int]) -> list[int]:
    """Return the seeds of some data's own streams in one call.

    They start at a number and go on by an odd stride, both of which the purpose and the call's seed decide: all data of
    a call differ, and two calls never run side by side, shifted or not.
    """
    named = stream_seed(purpose, seed)
    start, stride = named % _SEEDS, (named // _SEEDS) * 2 + 1
    return [(start + stride * index) % _SEEDS for index in indices]
