"""A draw together with the density that comes with it."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint


class Draw(dist.TorchDistribution):
    """A sample of a guide with randomness of its own: one value per observation, and the log density that weighs it.

    The density of any other value is unknown, and is returned as NaN.

    Args:
        value: the draw, ``[N, D]``.
        log_density: log density of the draw, ``[N]``, in nats.
        support: constraint that holds for all values that the guide could have drawn.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"value": constraints.real_vector, "log_density": constraints.real}
    has_rsample = True
    can_score = False  # it cannot score other values
    reparametrised = False  # not by parameters of its own: its value was drawn before

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
        """The support, as given."""
        return self._support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Draw":
        """Return itself; it cannot be expanded to more draws than it has.

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
        """Return the log density of the draw, ``[N]``; NaN where ``value`` is another value."""
        return torch.where((value == self.value).all(-1), self.log_density, torch.nan)
