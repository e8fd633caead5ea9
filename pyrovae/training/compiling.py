"""Whether a fit's steps run compiled, and the compiled steps themselves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from pyrovae.programs.compilation import Runner, agree, signature
from pyrovae.programs.isolation import same_streams
from pyrovae.programs.modules import python_numbers
from pyrovae.programs.pair import Pair
from pyrovae.programs.state import State
from pyrovae.programs.tracing import CannotCompile, Function, compiled
from pyrovae.programs.types import Batch
from pyrovae.programs.work import Counted, Work

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # between the first compiled step and the same step run eagerly

BFLOAT16_TOLERANCE = 0.05
PASSES = 3  # a step's passes through its operations: the objective, its gradient, the optimizer with the record


class Measures(Protocol):
    """A step that can be compiled: it measures as the programs run, and as a pure function."""

    state: State
    share: Any

    def measure(self, batch: Batch) -> list[Tensor | None]:
        """Return the row of measured numbers, and the gradient of every parameter."""

    def pure(self, *tensors: Tensor) -> list[Tensor | None]:
        """Return the same as a function of the programs' state and the batch."""


class Compiler:
    """Runs the steps of a fit, either all eagerly or all compiled; compiles once for each batch size.

    Args:
        mode: True, False or "auto".
        pair: the pair whose steps these are.
        counts: returns the number of remaining steps, and the number of different sizes of their batches.
        progress: whether to print the choice.
        bfloat16: whether the step has products in bfloat16, which make the eager step's numbers less exact.
    """

    def __init__(
        self,
        mode: bool | str,
        pair: Pair,
        counts: Callable[[], tuple[int, int]],
        progress: bool,
        bfloat16: bool = False,
    ) -> None:
        self.pair, self._counts = pair, counts
        self._bfloat16 = bfloat16
        self._work = Work(0, 0.0)
        self.runner = Runner(mode, "the step", progress)

    def run(self, step: Measures, batch: Batch) -> list[Any]:
        """Return what ``step.measure(batch)`` returns."""
        if self.runner.chosen is None:
            calls, sizes = self._counts()
            self.runner.decide(self._work.times(PASSES), calls, batch[0].device, functions=sizes)
        function = self.runner.function(
            (signature(batch), step.share),
            lambda: self._compiled(step, batch),
            lambda compiled: self._agrees(compiled, step, batch),
        )
        if function is None:
            return step.measure(batch)
        with torch.no_grad():
            return list(function(*step.state.values, *batch))

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the work of the block, which runs the objective on a batch."""
        counted = Counted()
        try:
            with counted:
                yield
        finally:
            self._work = counted.work

    def compiles(self, batch: Batch) -> bool:
        """Whether steps on such a batch run compiled, and have been checked."""
        return self.runner.is_checked((signature(batch), None))

    def _compiled(self, step: Measures, batch: Batch) -> Function:
        before = python_numbers(self.pair.model, self.pair.guide)
        with same_streams(batch[0].device):
            step.pure(*step.state.copies(), *batch)
        after = python_numbers(self.pair.model, self.pair.guide)
        changed = [name for name, value in after.items() if before.get(name) != value]
        if changed:
            raise CannotCompile(f"a call changes the Python value {changed[0]!r}, which a graph would freeze")
        return compiled(step.pure, [*step.state.copies(), *batch])

    def _agrees(self, function: Function, step: Measures, batch: Batch) -> bool:
        """Whether a compiled step equals the eager one, on copies of the state and with the noise of the next step."""
        state, device = step.state, batch[0].device
        with same_streams(device):
            expected = step.pure(*state.copies(), *batch)
        with same_streams(device), torch.no_grad():
            measured = function(*(t.detach() for t in state.copies()), *batch)
        tolerance = BFLOAT16_TOLERANCE if self._bfloat16 else TOLERANCE[measured[0].dtype]
        return agree(measured, expected, tolerance)

    def state(self) -> dict[str, Any]:
        """Return the choice, for a checkpoint."""
        return {"chosen": self.runner.chosen}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue with the choice that a checkpoint holds."""
        if self.runner.mode == "auto":
            self.runner.chosen = state.get("chosen")
