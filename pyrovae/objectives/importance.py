"""Importance-weighted bounds, their partial variants, and their gradient estimators."""

import math

import torch
from torch import Tensor

from pyrovae.common.checks import at_least, share
from pyrovae.objectives.objective import Drawn, Known, Objective, require_scorable, surrogate
from pyrovae.programs.layout import Layout
from pyrovae.programs.types import Batch, Program, Trace

ESTIMATORS = ("plain", "stl", "dreg")


class IWAE(Objective):
    """The importance-weighted bound E[log 1/K sum_k w_k], with w_k = p(x, z_k) / q(z_k | x), per observation.

    It grows with K, from the ELBO at K = 1 to log p(x). Gradient estimators:

    - ``"plain"``: the bound's own gradient. The guide's gradient loses its signal as K grows.
    - ``"stl"``, sticking the landing: the score of q is left out, so that the noise vanishes as q reaches the
      posterior. Unbiased for K = 1, biased for larger K.
    - ``"dreg"``, doubly reparametrised: unbiased, and with a signal that grows with K.

    The mean over several bounds (MIWAE) is more stable for the guide.

    Source: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2016; Roeder, Wu and Duvenaud,
    "Sticking the landing", 2017; Tucker, Lawson, Gu and Maddison, "Doubly reparameterized gradient estimators", 2019;
    Rainforth et al., "Tighter variational bounds are not necessarily better", 2018.

    Args:
        num_particles: K, number of particles of every bound.
        estimator: estimator of the gradient of the guide's parameters: "plain", "stl" or "dreg".
        num_bounds: number of bounds per observation that are averaged.

    Example:
        >>> from pyro.infer import SVI
        >>> from pyro.optim import Adam
        >>> from pyrovae import guides, models, nn
        >>> model, guide = models.LinearGaussian(2, 5), guides.MeanField(nn.MLP(5, 16), 2)
        >>> svi = SVI(model, guide, Adam({"lr": 1e-3}), IWAE(num_particles=5))
        >>> isinstance(svi.step(torch.zeros(7, 5)), float)
        True
    """

    def __init__(self, num_particles: int = 5, *, estimator: str = "plain", num_bounds: int = 1) -> None:
        if not isinstance(estimator, str) or estimator not in ESTIMATORS:
            raise ValueError(f"estimator must be one of {', '.join(map(repr, ESTIMATORS))}, got {estimator!r}")
        super().__init__(at_least("num_particles", num_particles, 1) * at_least("num_bounds", num_bounds, 1))
        self.particles, self.num_bounds, self.estimator = int(num_particles), int(num_bounds), estimator

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the bound, summed over the data that the batch stands for."""
        cut = self.estimator != "plain" and torch.is_grad_enabled()
        particles = self.draw(model, guide, batch, known, cut=cut)
        log_weights = particles.log_weights
        value = grouped(log_weights, self.num_bounds).sum()
        if cut:
            weights = normalised(log_weights, self.num_bounds)
            for_guide = weights.square() if self.estimator == "dreg" else weights
            value = self._estimated(particles, value, weights, for_guide)
        return particles.scale * value

    def _estimated(self, particles: Drawn, value: Tensor, for_model: Tensor, for_guide: Tensor) -> Tensor:
        """Return the value with gradients of log w through z alone, each particle with its own coefficient."""
        path = particles.log_p - particles.log_q_of_leaves
        terms = [(for_model * particles.log_p).sum(), particles.along_draws((for_guide / self.num_bounds * path).sum())]
        terms[0] = terms[0] / self.num_bounds
        return surrogate(value, terms)

    def check(self, layout: Layout, model_trace: Trace, guide_trace: Trace) -> None:
        """Refuse a guide that the estimator is not defined for."""
        if self.estimator != "plain":
            require_scorable(f"the estimator {self.estimator!r}", guide_trace, "as a function of its value")


class PIWAE(Objective):
    """The partially importance-weighted pair of bounds: IWAE for the model, MIWAE for the guide.

    The model maximises the bound of all M K particles, and the guide the mean of M bounds of K particles each, whose
    gradient has more signal. The loss is the model's bound.

    Source: Rainforth et al., "Tighter variational bounds are not necessarily better", 2018.

    Args:
        num_particles: K, number of particles of each bound of the guide.
        num_bounds: M, number of these bounds.
    """

    def __init__(self, num_particles: int = 5, *, num_bounds: int = 5) -> None:
        super().__init__(at_least("num_particles", num_particles, 1) * at_least("num_bounds", num_bounds, 1))
        self.particles, self.num_bounds = int(num_particles), int(num_bounds)

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the model's bound, summed over the data that the batch stands for."""
        cut = torch.is_grad_enabled()
        particles = self.draw(model, guide, batch, known, cut=cut)
        log_weights = particles.log_weights
        value = grouped(log_weights, 1).sum()
        if cut:
            weights, mean = normalised(log_weights, 1), normalised(log_weights, self.num_bounds) / self.num_bounds
            through_z = particles.along_draws((mean * particles.log_p).sum())
            value = surrogate(value, [(weights * particles.log_p).sum(), through_z, -(mean * particles.log_q).sum()])
        return particles.scale * value


class CIWAE(Objective):
    """The combination b ELBO + (1 - b) IWAE of two bounds, itself a bound.

    Source: Rainforth et al., "Tighter variational bounds are not necessarily better", 2018.

    Args:
        num_particles: K, number of particles of the importance-weighted bound; the ELBO averages the same draws.
        elbo_weight: weight b, between 0 and 1: a number or a function of the step.
    """

    def __init__(self, num_particles: int = 5, *, elbo_weight: float = 0.5) -> None:
        super().__init__(num_particles)
        self.elbo_weight = elbo_weight if callable(elbo_weight) else share("elbo_weight", elbo_weight)
        self.weigh(elbo_weight=elbo_weight)

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the combined bound, summed over the data that the batch stands for."""
        particles = self.draw(model, guide, batch, known)
        share, log_weights = self.weight("elbo_weight"), particles.log_weights
        return particles.scale * (share * log_weights.mean(0) + (1 - share) * grouped(log_weights, 1)).sum()


class VIMCO(Objective):
    """The importance-weighted bound, with a gradient for latents that are not reparametrised, discrete ones above all.

    Draws of reparametrised latents count as fixed as well.

    Each particle's score is weighted by what that particle adds to the bound: the bound minus the one in which the
    geometric mean of the other weights replaces the particle's weight. The gradient is unbiased.

    Source: Mnih and Rezende, "Variational inference for Monte Carlo objectives", 2016.

    Args:
        num_particles: K, number of particles, at least 2.
    """

    reparametrised = False

    def __init__(self, num_particles: int = 5) -> None:
        super().__init__(at_least("num_particles", num_particles, 2))

    def total(self, model: Program, guide: Program, batch: Batch, known: Known) -> Tensor:
        """Return the bound, summed over the data that the batch stands for."""
        particles = self.draw(model, guide, batch, known, cut=True)
        log_q, k = particles.log_q_of_leaves, self.num_particles
        log_weights = particles.log_p - log_q
        bound = grouped(log_weights, 1)
        values = log_weights.detach()
        others = (values.sum(0) - values) / (k - 1)
        swaps = values.expand(k, *values.shape).clone()
        swaps = torch.where(torch.eye(k, dtype=torch.bool, device=values.device)[..., None], others, swaps)
        signal = bound.detach() - (swaps.logsumexp(1) - math.log(k))
        return particles.scale * surrogate(bound.sum(), [bound.sum(), (signal * log_q).sum()])

    def check(self, layout: Layout, model_trace: Trace, guide_trace: Trace) -> None:
        """Refuse a guide that cannot score its draws as fixed values."""
        require_scorable("VIMCO", guide_trace, "as a function of its parameters")


def grouped(log_weights: Tensor, num_bounds: int) -> Tensor:
    """Return the mean over ``num_bounds`` groups of particles of log mean exp, ``[N]``, of log weights ``[K, N]``."""
    groups = log_weights.unflatten(0, (num_bounds, -1))
    return (groups.logsumexp(1) - math.log(groups.shape[1])).mean(0)


def normalised(log_weights: Tensor, num_bounds: int) -> Tensor:
    """Return each group's weights, which sum to 1, ``[K, N]``, as numbers without a gradient."""
    return log_weights.detach().unflatten(0, (num_bounds, -1)).softmax(1).flatten(0, 1)
