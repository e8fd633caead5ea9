"""A model of incomplete data in which a cell's value has a say in whether it is observed."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.common.checks import at_least
from pyrovae.likelihoods import Likelihood
from pyrovae.likelihoods.likelihood import check_likelihood
from pyrovae.likelihoods.missing import PartlyObserved
from pyrovae.models.parts import check_decoder, check_latents
from pyrovae.nn import Network
from pyrovae.nn.network import check_module
from pyrovae.priors import as_prior


class SelfMasking(nn.Module):
    """logit P(x_d is observed) = a_d + b_d x_d: each column by itself, as where high incomes are not told.

    Args:
        num_columns: number of columns D.
    """

    def __init__(self, num_columns: int) -> None:
        super().__init__()
        self.num_columns = at_least("num_columns", num_columns, 1)
        self.intercept = nn.Parameter(torch.zeros(self.num_columns))
        self.slope = nn.Parameter(torch.zeros(self.num_columns))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of columns ``[..., D]``."""
        return self.intercept + self.slope * x


class MissingNotAtRandom(nn.Module):
    """A VAE of incomplete data that models which cells are observed.

    For every observation::

        z ~ p(z)
        x ~ p(x | decoder(z))                 a cell is seen where s is 1
        s_d ~ Bernoulli(sigmoid(f_d(x)))      whether cell d is seen

    The cells that are not seen are latent: the site ``x_missing`` holds them, masked where x is seen. If f does not
    depend on x, cells are missing at random, and the model is a :class:`VAE` with
    :class:`~pyrovae.likelihoods.Missing`. The data alone cannot tell the two apart without what the model assumes.

    Guides: :class:`~pyrovae.guides.WithMissing` around any guide of one latent whose encoder takes NaN. An
    importance-weighted objective (:class:`~pyrovae.objectives.IWAE`) is advised.

    Source: Ipsen, Mattei and Frellsen, "not-MIWAE: deep generative modelling with missing not at random data", 2021.

    Args:
        prior: a distribution of z with batch shape ``()``, or a module that returns one.
        decoder: network from ``[..., latent_dim]`` to the likelihood's features.
        likelihood: turns those features into the distribution of complete x.
        missingness: module from complete x, ``[..., D]``, to the logits of being observed, such as
            :class:`SelfMasking`.

    Example:
        >>> from pyrovae import likelihoods, nn, priors
        >>> from pyrovae.models import SelfMasking
        >>> model = MissingNotAtRandom(
        ...     prior=priors.StandardNormal(2), decoder=nn.MLP(2, 5), likelihood=likelihoods.Gaussian(),
        ...     missingness=SelfMasking(5))
    """

    def __init__(
        self,
        *,
        prior: Any,
        decoder: Network | nn.Module,
        likelihood: Likelihood,
        missingness: nn.Module,
    ) -> None:
        super().__init__()
        prior = as_prior(prior)
        check_likelihood("likelihood", likelihood)
        check_decoder(decoder, likelihood)
        check_latents(prior, decoder)
        check_module("missingness", missingness)
        self.prior, self.decoder, self.likelihood, self.missingness = prior, decoder, likelihood, missingness

    def forward(self, x: Tensor) -> Tensor:
        """Sample z and the cells that are NaN, and observe the others of ``x``, ``[N, D]``; return z."""
        pyro.module("model", self)
        seen = ~x.isnan()
        prior = self.prior()
        with pyro.plate("data", x.shape[0]):
            z: Tensor = pyro.sample("z", prior)
            cells = self.likelihood.columns(self.decoder(z))
            pyro.sample("x", PartlyObserved(cells).to_event(1), obs=x)
            unseen = pyro.sample("x_missing", cells.mask(~seen).to_event(1))
            logits = self.missingness(torch.where(seen, x.nan_to_num(), unseen))
            pyro.sample("s", dist.Bernoulli(logits=logits).to_event(1), obs=seen.to(x.dtype))
        return z

    def unseen(self, x: Tensor, z: Tensor) -> dist.TorchDistribution:
        """Return p(x_missing | z), masked where x is seen: what a guide draws the missing cells from."""
        return self.likelihood.columns(self.decoder(z)).mask(x.isnan()).to_event(1)
