"""What guides that look at the model have in common: its density at a point of the unconstrained latent space."""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae.guides.guide import Guide
from pyrovae.pair import log_density


def log_joint(model: Callable[..., Any], family: Guide, batch: tuple[Tensor, ...], free: Tensor) -> Tensor:
    """Return log p(x, T(u)) + log |dT/du| of every datum, ``[N]``, in nats: the model's density of unconstrained u.

    Args:
        model: generative program.
        family: whose latent, and whose map T to its support, are meant.
        batch: the model's arguments.
        free: unconstrained latents u, ``[N, free_dim]``.
    """
    z, jacobian = free, torch.zeros(())
    if family.to_support is not None:
        z = family.to_support(free)
        jacobian = family.to_support.log_abs_det_jacobian(free, z)
    with poutine.block():
        trace = poutine.trace(poutine.condition(model, data={family.latent: z})).get_trace(*batch)
    return log_density(trace, len(batch[0])) + jacobian


def gradient(value: Tensor, at: Tensor, keep: bool) -> Tensor:
    """Return the gradient of the sum of ``value``, itself differentiable where ``keep``."""
    (found,) = torch.autograd.grad(value.sum(), at, create_graph=keep)
    return found


def leaf(value: Tensor, keep: bool) -> Tensor:
    """Return ``value`` as what a gradient can be taken at; cut off from what it came from unless ``keep``."""
    return value if keep and value.requires_grad else value.detach().requires_grad_()
