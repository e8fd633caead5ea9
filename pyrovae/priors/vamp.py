"""VampPrior: the guide's own posterior, averaged over a few pseudo-inputs."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions.constraints import Constraint

from pyrovae.common.checks import at_least, flag, not_a_class, widths
from pyrovae.distributions.traits import can_score
from pyrovae.priors.prior import Prior


class VampPrior(Prior):
    """p(z) = 1 / K sum_k q(z | u_k), with pseudo-inputs u_k learned, or left as the data at which they start.

    The best prior for the ELBO is the aggregate posterior; this one has few components, so that it does not overfit.
    Any guide will do that has ``posterior(x)`` and scores an externally supplied z. Attach it once both are made::

        prior = priors.VampPrior(8, num_components=50)
        model = models.VAE(prior=prior, ...)
        guide = guides.MeanField(encoder, 8)
        prior.attach(guide, x_train)

    With :class:`~pyrovae.guides.Ladder` it is the prior of the topmost layer.

    Source: Tomczak and Welling, "VAE with a VampPrior", 2018.

    Args:
        latent_dim: number of latents.
        num_components: K, number of components.
        learned: whether the pseudo-inputs are trained with the model.
        shape: shape of an observation, if it is known before there are data, as for a saved prior.

    Example:
        >>> from pyrovae import guides, nn
        >>> prior = VampPrior(3, num_components=10)
        >>> prior.attach(guides.FullRank(nn.MLP(64, 32), 3), torch.rand(100, 64))
        >>> prior().sample().shape
        torch.Size([3])
    """

    guide: Any
    inputs: Tensor

    def __init__(
        self, latent_dim: int, *, num_components: int = 50, learned: bool = True, shape: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.latent_dim = at_least("latent_dim", latent_dim, 1)
        self.num_components, self.learned = at_least("num_components", num_components, 1), flag("learned", learned)
        self.shape = None if shape is None else widths("shape", shape)
        self.__dict__["guide"] = None  # not a submodule: its parameters are the guide's
        if self.shape is not None:
            self._start(torch.zeros(self.num_components, *self.shape))

    def _start(self, inputs: Tensor) -> None:
        self.shape = tuple(inputs.shape[1:])
        if self.learned:
            self.inputs = nn.Parameter(inputs)
        else:
            self.register_buffer("inputs", inputs)

    def attach(self, guide: Any, data: Any = None) -> None:
        """Set the guide whose posterior this is, and the data at which the pseudo-inputs start.

        Args:
            guide: guide with ``posterior(x)``, or ``top(x)``, as guides of several layers have.
            data: a tensor ``[N, ...]``, or a data set, with at least as many observations as there are components. The
                pseudo-inputs start at observations spread evenly over it, in the dtype of the guide's parameters. None
                keeps the present pseudo-inputs.

        Raises:
            ValueError: when the guide has no such method or cannot score an externally supplied z, or for too few
                observations.
        """
        not_a_class("guide", guide)
        if _posterior(guide) is None:
            raise ValueError(
                f"the guide, a {type(guide).__name__}, has no method posterior(x), which a VampPrior averages"
            )
        if data is not None:
            if len(data) < self.num_components:
                raise ValueError(
                    f"{self.num_components} pseudo-inputs need as many data to start from, got {len(data)}"
                )
            rows = torch.arange(self.num_components, device="cpu") * len(data) // self.num_components
            start = data[rows] if isinstance(data, Tensor) else data.batch(rows)[0]
            self._start(start.detach().clone().to(_dtype(guide)))
        elif self.shape is None:
            raise ValueError("the pseudo-inputs need data to start from: attach(guide, data)")
        self._see_that_it_scores(guide)
        self.__dict__["guide"] = guide

    def _see_that_it_scores(self, guide: Any) -> None:
        device = next((p.device for p in guide.parameters()), self.inputs.device)
        with torch.random.fork_rng(), torch.no_grad():
            posterior = _posterior(guide)(self.inputs.to(device))
            try:
                posterior.log_prob(posterior.sample().clone())
                is_scorable = can_score(posterior)
            except (KeyError, NotImplementedError):
                is_scorable = False
        if not is_scorable:
            raise ValueError(
                f"a VampPrior needs the density of an externally supplied z, and {type(guide).__name__} knows that of "
                "its own draws alone: use another guide, or another prior"
            )

    def forward(self, *covariates: Tensor) -> dist.TorchDistribution:
        """Return the mixture."""
        if self.guide is None:
            raise ValueError("this VampPrior has no guide yet: call prior.attach(guide, data) once it is made")
        return EqualMixture(_posterior(self.guide)(self.inputs))


def _dtype(guide: Any) -> torch.dtype:
    """Return the dtype that a guide computes in, that of its parameters."""
    return next((p.dtype for p in guide.parameters() if p.is_floating_point()), torch.get_default_dtype())


def _posterior(guide: Any) -> Any:
    return getattr(guide, "top", None) or getattr(guide, "posterior", None)


class EqualMixture(dist.TorchDistribution):
    """The mixture of all members of a batch of distributions, with equal weights.

    Args:
        components: distributions, batch shape ``[K]``.
    """

    arg_constraints: ClassVar[dict[str, Constraint]] = {}

    def __init__(self, components: dist.TorchDistribution, batch_shape: Any = ()) -> None:
        self.components, self.size = components, int(components.batch_shape[0])
        super().__init__(torch.Size(batch_shape), components.event_shape, validate_args=False)

    @property
    def support(self) -> Constraint:
        """The support of the components."""
        return self.components.support

    @property
    def mean(self) -> Tensor:
        """Mean of the components' means."""
        return self.components.mean.mean(0).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Mean of the components' variances, plus the variance of their means."""
        variance = self.components.variance.mean(0) + self.components.mean.var(0, correction=0)
        return variance.expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "EqualMixture":
        """Return the same distribution for a larger batch."""
        return EqualMixture(self.components, batch_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw a component for each draw, then a value from the component."""
        shape = self._extended_shape(torch.Size(sample_shape))
        batch = shape[: len(shape) - len(self.event_shape)]
        with torch.no_grad():
            draws = self.components.sample(batch)
            choices = torch.randint(self.size, batch, device=draws.device)
            place = len(batch)
            index = choices.reshape(*batch, 1, *(1 for _ in self.event_shape)).expand(*batch, 1, *self.event_shape)
            return draws.gather(place, index).squeeze(place)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density."""
        place = value.dim() - len(self.event_shape)
        repeated = value.unsqueeze(place).expand(*value.shape[:place], self.size, *self.event_shape)
        each = self.components.log_prob(repeated)  # flows do not broadcast
        return each.logsumexp(-1) - math.log(self.size)
