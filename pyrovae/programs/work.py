"""The work of a call, counted and not timed, and what compiling saves of it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.internals.torch import TorchDispatchMode, tree_leaves

COMPILE_SECONDS = 20.0  # that tracing and compiling take, on two CPU cores with a cold cache
START = {"cpu": 4e-6, "cuda": 2.6e-5}  # seconds that an operation's start takes, in Python and in torch
PASS = {"cpu": 5e-10, "cuda": 0.0}  # seconds that a pass through memory takes, a number written


@dataclass(frozen=True)
class Work:
    """What a call does, counted and not timed: the same on every run, whatever else the machine has to do.

    Compiling saves the start of every operation, in Python and in torch, and passes through memory, since operations on
    the same numbers become one; products of matrices take as long as before. So the seconds that it saves a call are

        START * operations + PASS * numbers,

    on a CPU by least squares over ten calls of 98 to 468 operations and 1e5 to 7e7 numbers that
    ``benchmarks/compiling.py`` timed both ways (docs/compiling.md); on a card by the steps of docs/speed-cuda.md: 24,
    27 and 26 microseconds an operation of mnist, digits and iaf. Compiling costs ``COMPILE_SECONDS``, which took 13 to
    22 seconds on two idle cores.

    Attributes:
        operations: of torch that a call runs.
        numbers: that they write.
    """

    operations: int
    numbers: float

    def times(self, calls: int, rows: int = 1) -> "Work":
        """Return the work of so many calls like this one, on so many times the rows."""
        return Work(calls * self.operations, calls * rows * self.numbers)

    def saved(self, device: torch.device) -> float:
        """Return the seconds that compiling saves."""
        kind = device.type if device.type in START else "cpu"
        return START[kind] * self.operations + PASS[kind] * self.numbers


class Counted(TorchDispatchMode):
    """Counts the work that reaches torch inside the block, and changes none of it."""

    operations, numbers = 0, 0.0

    @property
    def work(self) -> Work:
        """What was counted."""
        return Work(self.operations, self.numbers)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.operations += 1
        if not func.is_view:
            self.numbers += sum(t.numel() for t in tree_leaves(found) if isinstance(t, Tensor))
        return found
