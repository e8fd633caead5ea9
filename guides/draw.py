"""A draw together with the density that comes with it."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint


class Draw(dist.TorchDistribution):
    """What a guide with randomness of its own samples: one value per observation, and the log density that weighs it.

    The density of any other value is not known, and is NaN.

    Args:
        value: ``[N, D]``.
        log_density: of the value, ``[N]``, in nats.
        support: in which all values that the guide could have drawn lie.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"value": constraints.real_vector, "log_density": constraints.real}
    has_rsample = True
    can_score = False  # at other values
    reparametrised = False  # by parameters of its own: what it draws was drawn before

    def __init__(
        self,
        value: Tensor,
        log_density: Tensor,
        support: Constraint = constraints.real_vector,
        validate_args: bool | None = None,
    ) -> None:
        self.value, self.log_density, self._support = value, log_density, support
        super().__init__(log_density.shape, value.shape[-1:], validate_args=validate_args)

    @property
    def support(self) -> Constraint:
        """As given."""
        return self._support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Draw":
        """Return itself; it cannot be made more draws than it is.

        Raises:
            ValueError: for another shape.
        """
        if torch.Size(batch_shape) != self.batch_shape:
            raise ValueError(
                f"a guide that draws before it samples has {tuple(self.batch_shape)} draws, and cannot be given "
                f"{tuple(batch_shape)} by a plate: run it once per particle (vectorize_particles=False)"
            )
        return self

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return the value."""
        if sample_shape:
            raise ValueError("there is one draw per observation: run the guide again for another")
        return self.value

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the density that comes with the value, ``[N]``; NaN where ``value`` is another."""
        return torch.where((value == self.value).all(-1), self.log_density, torch.nan)
