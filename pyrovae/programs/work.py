"""The work of a call, counted and not timed, and the time that compiling saves."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.internals.torch import TorchDispatchMode, tree_leaves

COMPILE_SECONDS = 20.0  # time of tracing and compiling, on two CPU cores with a cold cache
START = {"cpu": 4e-6, "cuda": 2.6e-5}  # seconds that the start of an operation takes, in Python and in torch
PASS = {"cpu": 5e-10, "cuda": 0.0}  # seconds that a pass through memory takes, per number written


@dataclass(frozen=True)
class Work:
    """What a call does, counted and not timed: the same on every run, whatever else the machine has to do.

    Compiling saves the start of every operation, in Python and in torch. It also saves passes through memory, since
    operations on the same numbers become one. Products of matrices take as long as before. So the seconds that it saves
    per call are

        START * operations + PASS * numbers.

    On a CPU the two constants come from least squares over ten calls of 98 to 468 operations and 1e5 to 7e7 numbers
    that ``benchmarks/compiling.py`` timed both ways (docs/compiling.md). On a GPU they come from the steps of
    docs/speed-cuda.md: 24, 27 and 26 microseconds per operation of mnist, digits and iaf. Compiling costs
    ``COMPILE_SECONDS``; it took 13 to 22 seconds on two idle cores.

    Attributes:
        operations: number of torch operations that a call runs.
        numbers: how many numbers these operations write.
    """

    operations: int
    numbers: float

    def times(self, calls: int, rows: int = 1) -> "Work":
        """Return the work of ``calls`` calls like this one, each on ``rows`` times as many rows."""
        return Work(calls * self.operations, calls * rows * self.numbers)

    def saved(self, device: torch.device) -> float:
        """Return the seconds that compiling saves."""
        kind = device.type if device.type in START else "cpu"
        return START[kind] * self.operations + PASS[kind] * self.numbers


class Counted(TorchDispatchMode):
    """Counts the work that reaches torch inside the block, without changing it."""

    operations, numbers = 0, 0.0

    @property
    def work(self) -> Work:
        """What was counted."""
        return Work(self.operations, self.numbers)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        if not func.is_view:
            self.numbers += sum(t.numel() for t in tree_leaves(result) if isinstance(t, Tensor))
        return result
