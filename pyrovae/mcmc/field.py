"""Log densities of unconstrained latents and their gradients, eagerly or compiled."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyrovae.importance.log_weights import program_state
from pyrovae.importance.question import Question
from pyrovae.programs.broadcast import tolerance
from pyrovae.programs.compilation import CannotCompile, Choice, Counted, Function, agree, compiled, signature
from pyrovae.programs.isolation import same_streams
from pyrovae.programs.types import Batch


@dataclass(frozen=True)
class Point:
    """Where every row is, and the log densities there.

    A row's target is a weighted sum of E log densities: one for a posterior, two on the way between distributions.

    Attributes:
        free: unconstrained latents, ``[rows, dim]``.
        logs: log densities, ``[E, rows]``, nats.
        forces: their gradients, ``[E, rows, dim]``; 0 where one is not finite.
    """

    free: Tensor
    logs: Tensor
    forces: Tensor

    def where(self, chosen: Tensor, other: "Point") -> "Point":
        """Return the rows that are ``chosen``, ``[rows]``, and those of the other point elsewhere."""
        return Point(
            torch.where(chosen[:, None], self.free, other.free),
            torch.where(chosen, self.logs, other.logs),
            torch.where(chosen[:, None], self.forces, other.forces),
        )


class Field:
    """Log densities of the rows of batches.

    Args:
        question: the pair and its data.
        densities: of a batch's rows and their unconstrained latents ``[rows, dim]``: E log densities, ``[rows]`` each.
        compile: True, False or "auto".
        calls: how many there will be.
        progress: None says nothing.
    """

    def __init__(
        self,
        question: Question,
        densities: Callable[[Batch, Tensor], list[Tensor]],
        compile: bool | str,
        calls: int,
        progress: str | None,
    ) -> None:
        self.densities, self.calls = densities, calls
        self.choice = Choice(compile, "a gradient of the latents", tqdm.write if progress else lambda _: None)
        self._modules = list(question.pair.modules.values())
        self._functions: dict[Any, Function] = {}
        self._state: Any = None

    def __call__(self, rows: Batch, free: Tensor) -> Point:
        """Return densities and gradients at ``free``."""
        if self.choice.chosen is None:
            with same_streams(free.device), Counted() as counted:
                self._eager(rows, free)
            self.choice.decide(counted.work, self.calls, free.device)
        if self.choice.chosen:
            key = signature((*rows, free))
            if key not in self._functions:
                self._compile(key, rows, free)
            if key in self._functions:
                return Point(free, *self._functions[key](*self._state.values, *rows, free))
        return Point(free, *self._eager(rows, free))

    def _eager(self, rows: Batch, free: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            free = free.detach().requires_grad_()
            logs = self.densities(rows, free)
            forces = [_gradient(log, free) for log in logs]
        return [torch.stack(logs).detach(), torch.stack(forces).nan_to_num(0, 0, 0)]

    def _compile(self, key: Any, rows: Batch, free: Tensor) -> None:
        self._state = self._state or program_state(self._modules)
        state, held = self._state, len(self._state.leaves)

        def pure(*tensors: Tensor) -> list[Tensor]:
            with state.replaced(tensors[:held]):
                return self._eager(tensors[held:-1], tensors[-1])

        try:
            function = compiled(pure, [*state.values, *rows, free])
            expected = self._eager(rows, free)
            if not agree(function(*state.values, *rows, free), expected, tolerance(expected[0])):
                raise CannotCompile("compiled, it differs from what is computed eagerly")
            self._functions[key] = function
        except CannotCompile as error:
            if self.choice.mode is True:
                warnings.warn(f"compile=True, but the programs run eagerly: {error}", stacklevel=2)
            self.choice.give_up(str(error))


def _gradient(log: Tensor, free: Tensor) -> Tensor:
    """Return the gradient of log densities, 0 where they do not depend on the latents (all of them masked)."""
    if not log.requires_grad:
        return torch.zeros_like(free)
    return torch.autograd.grad(log.sum(), free, retain_graph=True)[0]
