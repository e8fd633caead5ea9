"""Repeated calls, run eagerly or compiled: their work is counted, and each shape is compiled once and checked.

Steps of a fit, chunks of log weights and gradients of latents are all run by a :class:`Runner`. It goes back to eager
calls where compiling fails or the check does.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae.programs.tracing import CannotCompile, Function
from pyrovae.programs.work import COMPILE_SECONDS, Work

CHECKS = 2  # comparisons of a compiled call with the eager one: on the inputs it was traced with, and on others
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}  # relative difference of two ways to compute one log density


class Runner:
    """Decides whether a repeated call runs compiled, and keeps its compiled functions, one per key.

    ``"auto"`` decides before the first call, by the work that is left.

    Args:
        mode: True, False or "auto".
        what: what is called, for the line that says what was chosen.
        progress: whether to print that line.

    Attributes:
        chosen: whether calls run compiled; None before that is decided.
        lines: the lines that say what was chosen.
    """

    def __init__(self, mode: bool | str, what: str, progress: bool) -> None:
        self.mode, self.what, self.progress = mode, what, progress
        self.chosen: bool | None = None if mode == "auto" else bool(mode)
        self.lines: list[str] = []
        self._functions: dict[Hashable, Function] = {}
        self._checks: dict[Hashable, int] = {}

    def decide(self, work: Work, calls: int, device: torch.device, functions: int = 1) -> None:
        """Choose to compile when that saves more time in all ``calls`` than it costs.

        Args:
            work: work of one call.
            calls: number of calls that are left.
            device: device that they run on.
            functions: number of functions to compile, one per shape of the inputs.
        """
        savings, cost = work.times(calls).saved(device), COMPILE_SECONDS * functions
        self.chosen = savings > cost
        rest = f"{calls} left, each {work.operations} operations that write {work.numbers:.3g} numbers"
        verdict = "compiled, since that pays" if self.chosen else "eager, since compiling does not pay"
        line = f"{self.what}: {rest}: compiling saves about {savings:.3g} s and costs {cost:.0f} s: {verdict}"
        if self.chosen:  # what takes a while is shown
            self._say(line)
        else:
            self.lines.append(line)

    def function(self, key: Hashable, make: Callable[[], Function], agrees: Callable[[Function], bool | None]) -> Any:
        """Return the compiled function of a key; None where the call is to run eagerly.

        Args:
            key: key of the call: what its function is compiled for.
            make: compiles the function.
            agrees: says whether the compiled function does what the eager one does; called at the first calls, until it
                has said so twice. It returns None for inputs that were compared already, which tell nothing more.
        """
        if not self.chosen:
            return None
        try:
            if key not in self._functions:
                self._functions[key], self._checks[key] = make(), CHECKS
            if self._checks[key]:
                self._check(key, agrees)
        except CannotCompile as error:
            self.decline(str(error))
            return None
        return self._functions[key]

    def _check(self, key: Hashable, agrees: Callable[[Function], bool | None]) -> None:
        with exact_convolutions():
            agreement = agrees(self._functions[key])
        if agreement is False:
            raise CannotCompile(
                "compiled, its numbers differ from those run eagerly (does it leave torch, or draw from another "
                "generator than torch's?)"
            )
        self._checks[key] -= int(agreement is not None)

    def holds(self, key: Hashable) -> bool:
        """Whether there is a function for a key."""
        return key in self._functions

    def is_checked(self, key: Hashable) -> bool:
        """Whether a function is known to do what the eager call does."""
        return self._checks.get(key) == 0

    def decline(self, reason: str) -> None:
        """Run eagerly from now on, and say why; warn a user who set ``compile=True``."""
        if self.mode is True:
            warnings.warn(f"compile=True, but {self.what} runs eagerly: {reason}", stacklevel=2)
        self._functions.clear()
        self._checks.clear()
        self.mode, self.chosen = False, False
        self._say(f"{self.what} runs eagerly: {reason}")

    def _say(self, line: str) -> None:
        self.lines.append(line)
        if self.progress:
            tqdm.write(line)


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Let cuDNN compute convolutions in full precision inside the block, where two ways to compute are compared.

    By default it rounds their inputs to TF32, to ten bits, and two algorithms then differ by more than float32 would.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def check_mode(mode: Any) -> None:
    """Refuse a ``compile`` that is not True, False or "auto"."""
    if not isinstance(mode, bool) and mode != "auto":
        raise ValueError(f'compile must be True, False or "auto", got {mode!r}')


def signature(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return what a compiled function is made for: shapes, strides and dtypes."""
    return tuple((tuple(t.shape), t.stride(), t.dtype) for t in tensors)


def agree(ours: Sequence[Tensor | None], reference: Sequence[Tensor | None], tolerance: float) -> bool:
    """Whether tensors are equal up to ``tolerance`` times the largest value of each, and finite at the same places."""
    return all(
        (a is None and b is None) or (a is not None and b is not None and _agrees(a, b, tolerance))
        for a, b in zip(ours, reference, strict=True)
    )


def _agrees(a: Tensor, b: Tensor, tolerance: float) -> bool:
    near = (a - b).abs().nan_to_num(0, 0, 0) <= tolerance * (1 + _largest(b))
    return bool(((a.isfinite() == b.isfinite()) & near).all())


def _largest(tensor: Tensor) -> Tensor:
    return tensor.abs().nan_to_num(0, 0, 0).max() if tensor.numel() else tensor.new_zeros(())


def tolerance(values: Tensor) -> float:
    """Return how much two ways to compute one log density may differ, relative to its largest value."""
    return TOLERANCE.get(values.dtype, 1e-3)
