"""A guide that starts at an encoder's parameters and refines them for each observation."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least
from pyrovae.common.checks import positive as positive_number
from pyrovae.guides.guide import Guide
from pyrovae.guides.refinement import Refined, gradient, leaf, log_joint
from pyrovae.nn import positive, raw_positive


class SemiAmortized(Refined):
    """q(z | x) in a family, an encoder's parameters refined by a few gradient steps on each observation's bound.

    ::

        lambda_0 = head(encoder(x))
        lambda_{t+1} = lambda_t + r_t * g_t / max(1, |g_t|),   g_t = gradient of log p(x, z) - log q(z; lambda_t)

    with z drawn from q(z; lambda_t), once per step. Training differentiates through the steps, so that the encoder
    learns a start from which the steps gain much; the step lengths r_t are learned as well. The draws are part of the
    guide's randomness: given the draws, q(z | x) is a proper density, so bounds stay bounds.

    Source: Kim, Wiseman, Miller, Sontag and Rush, "Semi-amortized variational autoencoders", 2018; Marino, Yue and
    Mandt, "Iterative amortized inference", 2018.

    Args:
        family: any guide of one latent with an encoder.
        model: the generative program of the pair.
        num_steps: number of gradient steps per observation.
        step_length: initial value of every r_t.

    Example:
        >>> from pyrovae import guides, models, nn
        >>> model = models.LinearGaussian(2, 8)
        >>> guide = SemiAmortized(guides.MeanField(nn.MLP(8, 16), 2), model)
        >>> guide.posterior(torch.zeros(5, 8)).batch_shape
        torch.Size([5])
    """

    def __init__(
        self, family: Guide, model: Callable[..., Any], *, num_steps: int = 3, step_length: float = 0.5
    ) -> None:
        super().__init__(family, model)
        self.num_steps = at_least("num_steps", num_steps, 1)
        self.step_length = positive_number("step_length", step_length)
        self.raw_lengths = nn.Parameter(torch.full((self.num_steps,), raw_positive(self.step_length, "step_length")))

    def params(self, *batch: Tensor) -> Tensor:
        """Return the parameters of q(z | x) for every observation, ``[N, P]``, after the steps."""
        keep = torch.is_grad_enabled()
        params = self.family.params(*batch)
        for length in positive(self.raw_lengths):
            with torch.enable_grad():
                params = leaf(params, keep)
                q = self.family.family(params)
                free = q.rsample()
                grad = gradient(log_joint(self.model, self.family, batch, free) - q.log_prob(free), params, keep)
            params = params + length * grad / grad.norm(dim=-1, keepdim=True).clamp(min=1)
        return params

    def posterior(self, *batch: Tensor) -> dist.TorchDistribution:
        """Return q(z | x) of a batch: batch shape ``[N]``, event shape ``[latent_dim]``."""
        return self.family.member(self.params(*batch))
