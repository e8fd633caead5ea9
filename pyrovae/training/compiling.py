"""Whether a fit's steps run compiled, and the compiled steps themselves."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae.programs.compilation import (
    CannotCompile,
    Choice,
    Counted,
    Function,
    State,
    Work,
    agree,
    compiled,
    signature,
)
from pyrovae.programs.isolation import same_streams
from pyrovae.programs.modules import python_numbers
from pyrovae.programs.pair import Pair
from pyrovae.programs.types import Batch

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of the first compiled step against the same step run eagerly

BFLOAT16_TOLERANCE = 0.05
PASSES = 3  # of a step through its operations: the objective, its gradient, and the optimizer with what is recorded
CHECKS = 2  # of a compiled step against the eager one: on the batch that it was traced with, and on another


class Measures(Protocol):
    """What is compiled: a step's numbers, as the programs run and as a pure function."""

    state: State
    share: Any

    def measure(self, batch: Batch) -> list[Tensor | None]:
        """Return the row of measured numbers, and every parameter's gradient."""

    def pure(self, *tensors: Tensor) -> list[Tensor | None]:
        """Return the same as a function of the programs' state and the batch."""


class Compiler:
    """Runs the steps of a fit, all of them eagerly or all compiled, once for each size of their batches.

    Args:
        mode: True, False or "auto".
        pair: whose steps these are.
        left: returns the number of steps that are left, and of the sizes of their batches.
        progress: whether to print what is chosen.
        bfloat16: whether the step has products in bfloat16, which leave the eager step's numbers less exact.
    """

    def __init__(
        self,
        mode: bool | str,
        pair: Pair,
        left: Callable[[], tuple[int, int]],
        progress: bool,
        bfloat16: bool = False,
    ) -> None:
        self.mode, self.pair, self._left, self._progress = mode, pair, left, progress
        self._bfloat16 = bfloat16
        self._work = Work(0, 0.0)
        self.lines: list[str] = []
        self._choice = Choice(mode, "the steps", self._say)
        self._functions: dict[Any, Function] = {}
        self._checks: dict[Any, int] = {}
        self._ready: dict[Any, Function] = {}

    def run(self, step: Measures, batch: Batch) -> list[Any]:
        """Return what ``step.measure(batch)`` returns."""
        ready = self._ready.get((signature(batch), step.share))
        if ready is not None:
            return self._called(ready, step, batch)
        if self._choice.chosen is None:
            calls, sizes = self._left()
            self._choice.decide(self._work.times(PASSES), calls, batch[0].device, functions=sizes)
        function = self._function(step, batch) if self._choice.chosen else None
        return step.measure(batch) if function is None else self._called(function, step, batch)

    @staticmethod
    def _called(function: Function, step: Measures, batch: Batch) -> list[Any]:
        with torch.no_grad():
            return list(function(*step.state.values, *batch))

    @property
    def chosen(self) -> bool | None:
        """Whether steps run compiled; None before that is decided."""
        return self._choice.chosen

    @contextmanager
    def counting(self) -> Iterator[None]:
        """See inside the block, which runs the objective on a batch, how much work that is."""
        counted = Counted()
        try:
            with counted:
                yield
        finally:
            self._work = counted.work

    def compiles(self, batch: Batch) -> bool:
        """Whether steps on such a batch run compiled, and are known to be right."""
        return (signature(batch), None) in self._ready

    def decline(self, reason: str) -> None:
        """Run every step eagerly, and say why."""
        if self.mode is True:
            warnings.warn(f"compile=True, but the step runs eagerly: {reason}", stacklevel=2)
        self.mode = False
        self._choice.give_up(reason)

    def _say(self, line: str) -> None:
        self.lines.append(line)
        if self._progress:
            tqdm.write(line)

    def _function(self, step: Measures, batch: Batch) -> Function | None:
        key = signature(batch), step.share
        try:
            if key not in self._functions:
                self._functions[key] = self._compiled(step, batch)
                self._checks[key] = CHECKS
            if self._checks[key]:
                self._checks[key] -= 1
                self._check(self._functions[key], step, batch)
            else:
                self._ready[key] = self._functions[key]
        except CannotCompile as error:
            self.decline(str(error))
            return None
        return self._functions[key]

    def _compiled(self, step: Measures, batch: Batch) -> Function:
        before = python_numbers(self.pair.model, self.pair.guide)
        with same_streams(batch[0].device):
            step.pure(*step.state.copies(), *batch)
        after = python_numbers(self.pair.model, self.pair.guide)
        changed = [name for name, value in after.items() if before.get(name) != value]
        if changed:
            raise CannotCompile(f"a call changes the Python value {changed[0]!r}, which a graph would freeze")
        return compiled(step.pure, [*step.state.copies(), *batch])

    def _check(self, function: Function, step: Measures, batch: Batch) -> None:
        """See that a compiled step is the eager one, on copies of the state and with the noise to come."""
        state, device = step.state, batch[0].device
        with same_streams(device):
            expected = step.pure(*state.copies(), *batch)
        with same_streams(device), torch.no_grad():
            found = function(*(t.detach() for t in state.copies()), *batch)
        tolerance = BFLOAT16_TOLERANCE if self._bfloat16 else TOLERANCE[found[0].dtype]
        if not agree(found, expected, tolerance):
            raise CannotCompile(
                "compiled, its loss and gradient differ from those run eagerly (does it leave torch, or draw from "
                "another generator than torch's?)"
            )

    def state(self) -> dict[str, Any]:
        """Return what was chosen, for a checkpoint."""
        return {"chosen": self.chosen}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on as it was chosen before the checkpoint."""
        if self.mode == "auto":
            self._choice.chosen = state.get("chosen")
