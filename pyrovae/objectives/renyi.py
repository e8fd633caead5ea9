"""Renyi and chi bounds."""

import torch
from torch import Tensor

from pyrovae.common.checks import at_least, finite
from pyrovae.objectives.importance import grouped, normalised
from pyrovae.objectives.objective import Known, Objective, require_scorable, surrogate
from pyrovae.programs.layout import Layout
from pyrovae.programs.types import Batch, Program, Trace


class Renyi(Objective):
    """The variational Renyi objective 1 / (1 - a) log 1/K sum_k w_k^(1 - a), per observation.

    As K grows, the objective tends to log p(x) minus the Renyi divergence of order ``a``. This limit lies below
    log p(x) for a > 0 and above it for a < 0, and it is smaller for greater ``a``. For finite K the objective is a
    biased estimate of the limit: in expectation it lies between the limit and the ELBO. It is a lower bound for a >= 0,
    and not a bound for a < 0. a = 0 is IWAE, a = 1 the ELBO.

    Source: Li and Turner, "Renyi divergence variational inference", 2016.

    Args:
        alpha: the order ``a``.
        num_particles: K, number of particles.
    """

    def __init__(self, alpha: float, num_particles: int = 5) -> None:
        super().__init__(num_particles)
        self.alpha = finite("alpha", alpha)

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the objective, summed over the data that the batch stands for."""
        particles = self.draw(model, guide, batch, known)
        log_weights, power = particles.log_weights, 1 - self.alpha
        mean = log_weights.mean(0)
        if power == 0:
            return particles.scale * mean.sum()
        apart = power * (log_weights - mean)
        near = apart.abs().amax(0) < 0.1  # where the logarithm of a mean of exponentials would cancel
        close = torch.where(near, apart, torch.zeros_like(apart)).expm1().mean(0).log1p() / power
        return particles.scale * torch.where(near, mean + close, grouped(power * log_weights, 1) / power).sum()


class Chi(Objective):
    """The chi upper bound 1/n log E_q[w^n] on log p(x), which the guide lowers; this makes the guide overdispersed.

    With u_k the weights w_k^n normalised over K particles, the guide maximises (n - 1) / n sum_k u_k log q(z_k | x)
    with the draws fixed. This estimates the bound's gradient with a bias of order 1/K. (The gradient of the estimated
    bound through the draws is not used: for few particles it rewards a guide that misses the posterior.) No upper bound
    can fit the model, so the model maximises the importance-weighted bound of the same draws. The loss is the estimate
    of the upper bound, which is itself biased downwards for finite K.

    Source: Dieng, Tran, Ranganath, Paisley and Blei, "Variational inference via chi upper bound minimization", 2017.

    Args:
        order: n, at least 2; 2 is the chi-square divergence.
        num_particles: K, number of particles, at least 2.
    """

    reparametrised = False

    def __init__(self, order: int = 2, num_particles: int = 10) -> None:
        super().__init__(at_least("num_particles", num_particles, 2))
        self.order = at_least("order", order, 2)

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the negative upper bound, summed over the data that the batch stands for."""
        cut = torch.is_grad_enabled()
        particles = self.draw(model, guide, batch, known, cut=cut)
        log_weights, n = particles.log_weights, self.order
        value = -(grouped(n * log_weights, 1) / n).sum()
        if cut:
            weights, tilted = normalised(log_weights, 1), normalised(n * log_weights, 1)
            guide_part = (n - 1) / n * (tilted * particles.log_q_of_leaves).sum()
            value = surrogate(value, [(weights * particles.log_p).sum(), guide_part])
        return particles.scale * value

    def check(self, layout: Layout, model_trace: Trace, guide_trace: Trace) -> None:
        """Refuse a guide that cannot score its draws as fixed values."""
        require_scorable("Chi", guide_trace, "as a function of its parameters")
