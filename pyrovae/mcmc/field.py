"""Log densities of unconstrained latents and their gradients, eagerly or compiled."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.importance.question import Question
from pyrovae.programs.compilation import Runner, agree, signature, tolerance
from pyrovae.programs.isolation import same_streams
from pyrovae.programs.state import State, program_state
from pyrovae.programs.tracing import Function, compiled
from pyrovae.programs.types import Batch
from pyrovae.programs.work import Counted


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
        """Return this point's rows where ``chosen``, ``[rows]``, is True, and the other point's rows elsewhere."""
        return Point(
            torch.where(chosen[:, None], self.free, other.free),
            torch.where(chosen, self.logs, other.logs),
            torch.where(chosen[:, None], self.forces, other.forces),
        )


class Field:
    """Log densities of the rows of batches.

    Args:
        question: the pair and its data.
        densities: function of a batch's rows and their unconstrained latents ``[rows, dim]`` that returns E log
            densities, ``[rows]`` each.
        calls: how many calls there will be.
    """

    def __init__(
        self,
        question: Question,
        densities: Callable[[Batch, Tensor], list[Tensor]],
        calls: int,
    ) -> None:
        self.densities, self.calls = densities, calls
        self.runner = Runner(question.compile, "a gradient of the latents", question.progress)
        self._modules = list(question.pair.modules.values())

    @functools.cached_property
    def _state(self) -> State:
        return program_state(self._modules)

    def __call__(self, rows: Batch, free: Tensor) -> Point:
        """Return densities and gradients at ``free``."""
        if self.runner.chosen is None:
            with same_streams(free.device), Counted() as counted:
                self._eager(rows, free)
            self.runner.decide(counted.work, self.calls, free.device)
        function = self.runner.function(
            signature((*rows, free)), lambda: self._compiled(rows, free), lambda f: self._agrees(f, rows, free)
        )
        return Point(free, *(self._eager(rows, free) if function is None else function(*self._inputs(rows, free))))

    def _eager(self, rows: Batch, free: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            free = free.detach().requires_grad_()
            logs = self.densities(rows, free)
            forces = [_gradient(log, free) for log in logs]
        return [torch.stack(logs).detach(), torch.stack(forces).nan_to_num(0, 0, 0)]

    def _inputs(self, rows: Batch, free: Tensor) -> list[Tensor]:
        return [*self._state.values, *rows, free]

    def _compiled(self, rows: Batch, free: Tensor) -> Function:
        state, size = self._state, len(self._state.leaves)

        def pure(*tensors: Tensor) -> list[Tensor]:
            with state.replaced(tensors[:size]):
                return self._eager(tensors[size:-1], tensors[-1])

        return compiled(pure, self._inputs(rows, free))

    def _agrees(self, function: Function, rows: Batch, free: Tensor) -> bool:
        expected = self._eager(rows, free)
        return agree(function(*self._inputs(rows, free)), expected, tolerance(expected[0]))


def _gradient(log: Tensor, free: Tensor) -> Tensor:
    """Return the gradient of log densities; it is 0 where they do not depend on the latents (all of them masked)."""
    if not log.requires_grad:
        return torch.zeros_like(free)
    return torch.autograd.grad(log.sum(), free, retain_graph=True)[0]
