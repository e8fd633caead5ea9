"""Whether a fit's steps run compiled, and the compiled steps themselves."""

import time
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae.compiled import CannotCompile, Choice, Function, State, agree, compiled, signature
from pyrovae.pair import Batch, Pair, python_numbers
from pyrovae.state import same_streams

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of the first compiled step against the same step run eagerly

BFLOAT16_TOLERANCE = 0.05
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
    """Runs the steps of a fit, each batch size eagerly or compiled.

    Args:
        mode: True, False or "auto".
        pair: whose steps these are.
        calls_left: steps that are left with a batch of a size.
        progress: whether to print what is chosen.
        bfloat16: whether the step has products in bfloat16, which leave the eager step's numbers less exact.
    """

    def __init__(
        self,
        mode: bool | str,
        pair: Pair,
        calls_left: Callable[[int], int],
        progress: bool,
        bfloat16: bool = False,
    ) -> None:
        self.mode, self.pair, self.calls_left, self._progress = mode, pair, calls_left, progress
        self._bfloat16 = bfloat16
        self.lines: list[str] = []
        self._choices: dict[int, Choice] = {}
        self._functions: dict[Any, Function] = {}
        self._checks: dict[Any, int] = {}
        self._ready: dict[Any, Function] = {}

    def run(self, step: Measures, batch: Batch) -> list[Any]:
        """Return what ``step.measure(batch)`` returns."""
        ready = self._ready.get((signature(batch), step.share))
        if ready is not None:
            with torch.no_grad():
                return list(ready(*step.state.values, *batch))
        choice = self._choice(len(batch[0]))
        function = self._function(step, batch, choice) if choice.chosen else None
        if function is not None:
            with torch.no_grad():
                return list(function(*step.state.values, *batch))
        if choice.chosen is not None:
            return step.measure(batch)
        started = time.perf_counter()
        result = step.measure(batch)
        _wait(batch[0].device)
        choice.timed(time.perf_counter() - started, self.calls_left(len(batch[0])))
        return result

    def compiles(self, batch: Batch) -> bool:
        """Whether steps on such a batch run compiled, and are known to be right."""
        return (signature(batch), None) in self._ready

    def decline(self, reason: str) -> None:
        """Run every step eagerly, and say why."""
        if self.mode is True:
            warnings.warn(f"compile=True, but the step runs eagerly: {reason}", stacklevel=2)
        self._say(f"the step runs eagerly: {reason}")
        self.mode = False
        self._choices.clear()

    def _choice(self, size: int) -> Choice:
        if size not in self._choices:
            self._choices[size] = Choice(self.mode, f"step on {size} data", self._say)
        return self._choices[size]

    def _say(self, line: str) -> None:
        self.lines.append(line)
        if self._progress:
            tqdm.write(line)

    def _function(self, step: Measures, batch: Batch, choice: Choice) -> Function | None:
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
        before = python_numbers(self.pair)
        with same_streams(batch[0].device):
            step.pure(*step.state.copies(), *batch)
        after = python_numbers(self.pair)
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
        return {str(size): [choice.calls, choice.chosen] for size, choice in self._choices.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on as it was chosen before the checkpoint."""
        for size, (calls, chosen) in state.items():
            choice = self._choice(int(size))
            choice.calls = calls
            if self.mode == "auto":
                choice.chosen = chosen


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
