"""A running fit: its parts, and how far it is."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyrovae.training.batches import Batches
from pyrovae.training.compiling import Compiler
from pyrovae.training.group import Group
from pyrovae.training.history import History
from pyrovae.training.problem import Problem
from pyrovae.training.stepper import Stepper
from pyrovae.training.tensors import pair_tensors


@dataclass
class Position:
    """How far a fit is.

    Attributes:
        step: number of steps taken.
        epoch: number of epochs that have ended.
        seconds: seconds of training.
        stopped: the reason to stop, or "".
        best_bound: the highest validation bound.
        best_epoch: number of epochs after which the best bound was reached; 0 where there is none yet.
    """

    step: int = 0
    epoch: int = 0
    seconds: float = 0.0
    stopped: str = ""
    best_bound: float = -math.inf
    best_epoch: int = 0


@dataclass
class Kept:
    """Copies of the pair's tensors.

    Attributes:
        good: copies from the end of the last epoch; the fit goes back to them when a step fails.
        best: copies from the highest validation bound.
        last: copies from the end of a fit that went back to the best.
    """

    good: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    last: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Fitting:
    """A running fit.

    Attributes:
        problem: the pair, its data and the objective.
        batches: batches of the data.
        compiler: runs the gradients of the steps.
        stepper: takes the steps.
        history: one row per step.
        group: group of processes.
        schedule: function of the step that returns the learning rate; None leaves the optimizer's own.
        position: how far the fit is.
        kept: copies of tensors.
    """

    problem: Problem
    batches: Batches
    compiler: Compiler
    stepper: Stepper
    history: History
    group: Group
    schedule: Callable[[int], float] | None
    position: Position = field(default_factory=Position)
    kept: Kept = field(default_factory=Kept)

    def copied(self) -> dict[str, Tensor]:
        """Copy every tensor of the pair."""
        return {key: t.detach().clone() for key, t in self._tensors().items()}

    @torch.no_grad()
    def back_to(self, tensors: dict[str, Tensor]) -> None:
        """Set the pair's tensors back to a copy of them."""
        for key, t in self._tensors().items():
            t.copy_(tensors[key])

    def keep(self) -> None:
        """Keep the tensors as the last good state, and make them the same in every process."""
        self.agree()
        self.kept.good = self.copied()

    def keep_best(self) -> None:
        """Keep the last good state as the best."""
        self.kept.best = self.kept.good

    def end_at_best(self) -> None:
        """Go back to the best state, if there is one; keep the last state for a fit that continues from here."""
        if self.kept.best:
            self.kept.last = self.copied()
            self.back_to(self.kept.best)

    def agree(self) -> None:
        """Give every process the tensors of the first: batch statistics differ, as each sees its own share alone."""
        self.group.same(self.problem.state.values)

    def _tensors(self) -> dict[str, Tensor]:
        return pair_tensors(self.problem.pair, self.problem.bare)
