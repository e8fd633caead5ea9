"""A prior whose parameters have priors of their own."""

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae.common.checks import program, shown
from pyrovae.priors.prior import Prior, as_prior


class Hierarchical(Prior):
    """z_i ~ family(h), h ~ hyperpriors: h is shared by all observations.

    Each hyperparameter is a latent site ``prior.<name>`` outside the data plate, so that the guide has to sample it as
    well (:class:`~pyrovae.guides.WithGlobals`) and the model has to know the number of observations (``num_data``).

    Source: Gelman et al., "Bayesian data analysis", 2013, chapter 5.

    Args:
        family: function that returns the prior of z from the hyperparameters, by name.
        hyperpriors: distribution of each hyperparameter, by name.

    Example:
        >>> import torch
        >>> prior = Hierarchical(
        ...     lambda loc, scale: dist.Normal(loc, scale).to_event(1),
        ...     {"loc": dist.Normal(torch.zeros(2), 1.0).to_event(1),
        ...      "scale": dist.LogNormal(torch.zeros(2), 1.0).to_event(1)})
        >>> prior().event_shape
        torch.Size([2])
    """

    def __init__(self, family: Callable[..., Any], hyperpriors: Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(family, type):  # a class of distributions is a function of their parameters
            program("family", family)
        if not isinstance(hyperpriors, Mapping) or not hyperpriors:
            raise ValueError(f"hyperpriors must be distributions by name, at least one, got {shown(hyperpriors)}")
        for name in hyperpriors:
            if not isinstance(name, str) or not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise ValueError(f"hyperpriors are named as the arguments of family are, got the name {name!r}")
        self.family = family
        self.hyperpriors = nn.ModuleDict({name: as_prior(prior) for name, prior in hyperpriors.items()})

    def forward(self, *covariates: Tensor) -> dist.TorchDistribution:
        """Draw the hyperparameters; return the prior of z given them."""
        hyperparameters = {name: pyro.sample(f"prior.{name}", prior()) for name, prior in self.hyperpriors.items()}
        prior_of_z: dist.TorchDistribution = self.family(**hyperparameters)
        return prior_of_z
