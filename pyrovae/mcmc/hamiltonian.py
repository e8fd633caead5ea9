"""Hamiltonian Monte Carlo of many rows at once, each a chain of its own with its own step size."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.mcmc.field import Point
from pyrovae.programs.noise import DatumNoise

DIVERGENT = 1000.0  # nats that a trajectory may lose before it counts as divergent


At = Callable[[Tensor], Point]  # of positions [rows, dim]


@dataclass(frozen=True)
class Move:
    """The outcome of a transition.

    Attributes:
        point: where every row is now.
        acceptance: acceptance probability of the row's trajectory, ``[rows]``.
        divergent: whether the trajectory lost more than 1000 nats or left the density's domain, ``[rows]``.
    """

    point: Point
    acceptance: Tensor
    divergent: Tensor


def move(
    start: Point,
    at: At,
    weights: Tensor,
    step_size: Tensor,
    factor: Tensor,
    num_steps: int,
    noise: DatumNoise,
) -> Move:
    """Make a Hamiltonian transition of every row, which leaves the target exp(sum_e weights_e log f_e) invariant.

    Source: Neal, "MCMC using Hamiltonian dynamics", 2011.

    Args:
        start: where the rows are.
        at: returns the log densities and gradients at any positions.
        weights: weights of the log densities, ``[E, rows]`` or ``[E, 1]``.
        step_size: step size of every row, ``[rows]``.
        factor: F of the metric (F F')^-1: its diagonal ``[data, dim]``, or lower triangular ``[data, dim, dim]``. Every
            observation has the same number of rows, one after the other. A posterior of covariance F F' looks like a
            standard normal one.
        num_steps: number of leapfrog steps.
        noise: random numbers of the data.
    """
    with noise:
        momentum = torch.randn_like(start.free)
        threshold = torch.rand_like(start.free[:, 0])
    size = step_size[:, None]
    energy = (weights * start.logs).sum(0) - 0.5 * momentum.square().sum(1)
    here = start
    momentum = momentum + 0.5 * size * pull(factor, _mixed(weights, here))
    for step in range(num_steps):
        here = at(here.free + size * push(factor, momentum))
        kick = 0.5 if step == num_steps - 1 else 1.0
        momentum = momentum + kick * size * pull(factor, _mixed(weights, here))
    end = (weights * here.logs).sum(0) - 0.5 * momentum.square().sum(1)
    change = torch.where(end.isfinite(), end - energy, -torch.inf).nan_to_num(-torch.inf, torch.inf, -torch.inf)
    acceptance = change.clamp(max=0).exp().to(threshold)  # from density 0, a chain takes any other point
    return Move(here.where(threshold < acceptance, start), acceptance, change < -DIVERGENT)


def _mixed(weights: Tensor, here: Point) -> Tensor:
    """Return the gradient of the target of every row."""
    return (weights[:, :, None] * here.forces).sum(0).to(here.forces)


def push(factor: Tensor, vector: Tensor) -> Tensor:
    """Return F v of every row."""
    parts = vector.unflatten(0, (len(factor), -1))
    return (factor[:, None] * parts if factor.dim() == 2 else parts @ factor.mT).flatten(0, 1)


def pull(factor: Tensor, vector: Tensor) -> Tensor:
    """Return F' v of every row."""
    parts = vector.unflatten(0, (len(factor), -1))
    return (factor[:, None] * parts if factor.dim() == 2 else parts @ factor).flatten(0, 1)


class DualAveraging:
    """Adapts a step size per observation until its chains accept with the target probability.

    Source: Hoffman and Gelman, "The No-U-Turn sampler", 2014, section 3.2, with its constants.

    Args:
        step_size: step size to start from, ``[data]``.
        target: target of the acceptance probability.
        largest: largest step size that is of use.
    """

    def __init__(self, step_size: Tensor, target: float, largest: float) -> None:
        self.target, self.largest, self.count = target, largest, 0
        self.centre = (10 * step_size).log()
        self.error = torch.zeros_like(step_size)
        self.log_size, self.log_mean = step_size.log(), torch.zeros_like(step_size)

    @property
    def step_size(self) -> Tensor:
        """Step size to use while adapting, ``[data]``."""
        return self.log_size.exp()

    @property
    def final(self) -> Tensor:
        """Step size to use after adapting, ``[data]``."""
        return self.log_mean.exp() if self.count else self.step_size

    def update(self, acceptance: Tensor) -> None:
        """Adapt to the mean acceptance probability of every observation's chains, ``[data]``."""
        self.count += 1
        forget = 1 / (self.count + 10)
        self.error = (1 - forget) * self.error + forget * (self.target - acceptance)
        self.log_size = (self.centre - self.count**0.5 / 0.05 * self.error).clamp(max=math.log(self.largest))
        keep = self.count**-0.75
        self.log_mean = keep * self.log_size + (1 - keep) * self.log_mean
