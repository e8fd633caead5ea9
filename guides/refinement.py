"""Base class of guides that use the model: a family, the model, and its density of unconstrained latents."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyrovae.common.checks import program
from pyrovae.guides.guide import Guide, check_guide
from pyrovae.programs.densities import log_density
from pyrovae.programs.handlers import same_numbers


class Refined(nn.Module):
    """A guide that starts from a family's member and uses the model to refine it.

    Args:
        family: any guide of one latent with an encoder.
        model: the generative program of the pair.
    """

    model: Any

    def __init__(self, family: Guide, model: Callable[..., Any]) -> None:
        super().__init__()
        check_guide("family", family)
        program("model", model)
        self.family, self.latent = family, family.latent
        self.__dict__["model"] = model  # not a submodule: its parameters are the model's

    @abstractmethod
    def posterior(self, *batch: Tensor) -> dist.TorchDistribution:
        """Return q(z | x) of a batch: batch shape ``[N]``, event shape ``[latent_dim]``."""

    def forward(self, *batch: Tensor) -> Tensor:
        """Sample the latent of every observation of the batch; return it, ``[N, latent_dim]``."""
        pyro.module("guide", self)
        posterior = self.posterior(*batch)  # outside the plate: the model that it runs has sites of that plate as well
        with pyro.plate("data", batch[0].shape[0]):
            z: Tensor = pyro.sample(self.latent, posterior)
        return z


def log_joint(model: Callable[..., Any], family: Guide, batch: tuple[Tensor, ...], free: Tensor) -> Tensor:
    """Return log p(x, T(u)) + log |dT/du| of every observation, ``[N]``, in nats: the density of unconstrained u.

    Args:
        model: generative program.
        family: guide whose latent, and whose map T to the support, are used.
        batch: the model's arguments.
        free: unconstrained latents u, ``[N, free_dim]``.
    """
    z, jacobian = free, torch.zeros(())
    if family.to_support is not None:
        z = family.to_support(free)
        jacobian = family.to_support.log_abs_det_jacobian(free, z)
    with poutine.block(), same_numbers():
        trace = poutine.trace(poutine.condition(model, data={family.latent: z})).get_trace(*batch)
    return log_density(trace, len(batch[0])) + jacobian


def gradient(value: Tensor, at: Tensor, keep: bool) -> Tensor:
    """Return the gradient of the sum of ``value``; it is itself differentiable if ``keep``."""
    (grad,) = torch.autograd.grad(value.sum(), at, create_graph=keep)
    return grad


def leaf(value: Tensor, keep: bool) -> Tensor:
    """Return ``value`` as a tensor at which a gradient can be taken; detached from its origin unless ``keep``."""
    return value if keep and value.requires_grad else value.detach().requires_grad_()
