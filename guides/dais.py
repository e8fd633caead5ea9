"""A guide refined by Hamiltonian dynamics: differentiable annealed importance sampling."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least
from pyrovae.common.checks import positive as positive_number
from pyrovae.guides.draw import Draw
from pyrovae.guides.guide import Guide, transformed
from pyrovae.guides.refinement import Refined, gradient, leaf, log_joint
from pyrovae.nn import positive, raw_positive


class DAIS(Refined):
    """A draw from a family, moved towards p(z | x) by a few steps of uncorrected Hamiltonian annealing.

    With q_0 the family's member, 0 < b_1 < ... < b_T = 1, and partly refreshed momenta, for t = 1, ..., T::

        (u_t, r_t') = leapfrog(u_{t-1}, r_t),   towards the density q_0^(1 - b_t) p(x, u)^b_t
        r_{t+1} = c r_t' + sqrt(1 - c^2) e_t,   e_t ~ N(0, I)

    No step is accepted or rejected, so that every step is differentiable. The density of the draw z = u_T is
    q_0(u_0) prod_t N(r_t) / N(r_t'). With this density E[p(x, z) / density] is p(x), so that bounds stay bounds.
    Temperatures, step sizes (one per latent) and c are learned. An externally supplied z cannot be scored.

    Source: Zhang, Hsu, Li, Finn and Grosse, "Differentiable annealed importance sampling and the perils of gradient
    noise", 2021; Geffner and Domke, "MCMC variational inference via uncorrected Hamiltonian annealing", 2021; Thin et
    al., "Monte Carlo variational auto-encoders", 2021.

    Args:
        family: any guide of one latent with an encoder.
        model: the generative program of the pair.
        num_steps: number of leapfrog steps; each step costs a gradient of the model.
        step_size: initial step size of every latent, on its unconstrained scale.

    Example:
        >>> from pyrovae import guides, models, nn
        >>> model = models.LinearGaussian(2, 8)
        >>> guide = DAIS(guides.MeanField(nn.MLP(8, 16), 2), model)
        >>> guide.posterior(torch.zeros(5, 8)).batch_shape
        torch.Size([5])
    """

    def __init__(self, family: Guide, model: Callable[..., Any], *, num_steps: int = 4, step_size: float = 0.1) -> None:
        super().__init__(family, model)
        self.num_steps = at_least("num_steps", num_steps, 1)
        self.step_size = positive_number("step_size", step_size)
        self.raw_sizes = nn.Parameter(torch.full((family.free_dim,), raw_positive(self.step_size, "step_size")))
        self.raw_temperatures = nn.Parameter(torch.zeros(self.num_steps))
        self.raw_keep = nn.Parameter(torch.zeros(()))

    def temperatures(self) -> Tensor:
        """Return b_1, ..., b_T, ``[num_steps]``."""
        return self.raw_temperatures.softmax(0).cumsum(0)

    def posterior(self, *batch: Tensor) -> dist.TorchDistribution:
        """Draw z; return it with the density of the draw, batch shape ``[N]``, event shape ``[latent_dim]``."""
        keep = torch.is_grad_enabled()
        q = self.family.family(self.family.params(*batch))
        free = q.rsample()
        log_q = q.log_prob(free)
        size, persistence = positive(self.raw_sizes), self.raw_keep.sigmoid()
        momentum = torch.randn_like(free)

        def force(at: Tensor, temperature: Tensor) -> Tensor:
            with torch.enable_grad():
                at = leaf(at, keep)
                own, joint = q.log_prob(at), log_joint(self.model, self.family, batch, at)
                return gradient((1 - temperature) * own + temperature * joint, at, keep)

        for t, temperature in enumerate(self.temperatures()):
            if t:
                momentum = persistence * momentum + (1 - persistence.square()).sqrt() * torch.randn_like(free)
            log_q = log_q - 0.5 * momentum.square().sum(-1)
            momentum = momentum + 0.5 * size * force(free, temperature)
            free = free + size * momentum
            momentum = momentum + 0.5 * size * force(free, temperature)
            log_q = log_q + 0.5 * momentum.square().sum(-1)
        return transformed(Draw(free, log_q), self.family.to_support)
